"""Many models: the same command for each of them, in several processes or on several machines.

What is asked of a worker is a command line about one model, so a model among thousands is treated
as it is alone. What comes back is a `Row`: the JSON report of that command, its exit code, and what
else was wanted of it. `pool` has the processes of this machine, `cluster` those of a Dask cluster,
`journal` reads and merges the rows of earlier runs. Nothing here knows what the commands do: this
room imports the standard library, and what supervises processes.
"""
