"""Files of strangers in a process that can be killed.

C libraries read and run models. On a damaged file they may loop for ever, crash, or take all memory
there is, and no Python code of the same process can do anything about it. So the work is done in a
child process, and another process, the supervisor, waits for it: `watch` is what the supervisor
does, `link` is how the child tells it what is being done. This room imports the standard library
and `bnfold.errors` only, and the supervisor of the command line hardly any of that: it costs its
import and its memory on every run.
"""
