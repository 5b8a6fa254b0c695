"""Deciding what folds, and folding it.

`plan.plan` says for each BatchNormalization what will be done or why it can't be; `apply.apply`
does it. Both are pure: a graph goes in, a value comes out, and the file is not touched.
"""
