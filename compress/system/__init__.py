"""The machine: devices, memory, progress, units for people.

Here: nothing that knows a model or a recipe. Add one: a module that imports `errors` alone.
"""
