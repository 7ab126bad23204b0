"""The plan of a run from headers and configuration alone; no tensor is read.

Here: targets, methods of a step, fused groups, output tensors, memory (`make.make_plan` puts them together into a
`plan.Plan`). Not here: anything that looks at data (`allocate`, `calibrate`). Add a fact of the plan: a field of
`plan.Plan`, filled in `make`.
"""
