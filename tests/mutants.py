"""One-line mutations of the sources, each with the tests that must notice it; ``python -m tools.mutate`` runs them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One line changed so that the program is wrong.

    Attributes:
        file: the source, from the top of the repository.
        old: the line without its indentation; it occurs exactly once in the file.
        new: what takes its place.
        tests: files, or ``file::test``, one of which must fail.
    """

    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def _mutants(file: str, tests: str, *lines: tuple[str, str]) -> tuple[Mutant, ...]:
    """Mutations of one file that the same tests must notice: files, each with the names of some of its tests or all of it."""
    selected: dict[str, list[str]] = {}
    for word in tests.split():
        if word.endswith(".py"):
            selected[word] = []
        else:
            names = next(reversed(selected.values()))
            names.append(word)
    chosen = [
        f"{path}::{name}" if name else path for path, names in selected.items() for name in names or [""]
    ]
    return tuple(Mutant(file, old, new, tuple(chosen)) for old, new in lines)


T = "tests/compress"

MUTANTS: tuple[Mutant, ...] = (
    # Healing
    *_mutants(
        "compress/healing/trained.py",
        f"{T}/healing/test_trained.py",
        ("inside = values.clamp(lowest, top)", "inside = values.clamp(lowest, top + 1)"),
    ),
    *_mutants(
        "compress/linalg/straight_through.py",
        f"{T}/healing/test_trained.py",
        ("return values + (stored - values).detach()", "return stored + 0 * values"),
    ),
    *_mutants(
        "compress/healing/modules.py",
        f"{T}/healing/test_trained.py",
        (
            "grad_weight = (rows.T @ columns).to(dense.dtype)",
            "grad_weight = 0.5 * (rows.T @ columns).to(dense.dtype)",
        ),
    ),
    *_mutants(
        "compress/healing/steps.py",
        f"{T}/healing/test_loop.py {T}/healing/test_steps.py",
        (
            "student.logits.backward(gradient / count)",
            "student.logits.backward(gradient / tokens.numel())",
        ),
        ("and self.rules.recordable", ""),
        (
            "master.grad = torch.zeros_like(master) if master.grad is None else master.grad.zero_()",
            "master.grad = torch.zeros_like(master) if master.grad is None else master.grad",
        ),
    ),
    *_mutants(
        "compress/healing/recorded.py",
        f"{T}/healing/test_recorded.py",
        ("place.copy_(one)", "pass"),
    ),
    *_mutants(
        "compress/healing/sparse.py",
        f"{T}/healing/test_trained.py",
        (
            "return (rows * shape[1] + columns).flatten().to(torch.int32)",
            "return (rows + columns).flatten().to(torch.int32)",
        ),
    ),
    *_mutants(
        "compress/healing/loop.py",
        f"{T}/healing/test_loop.py",
        ("elif kl < best:", "elif kl > best:"),
    ),
    *_mutants(
        "compress/healing/state.py",
        f"{T}/healing/test_state.py",
        (
            'return _of(facts, tensors) if facts.get("key") == key and "rate" in facts else None',
            "return _of(facts, tensors)",
        ),
    ),
    *_mutants(
        "compress/healing/optimizers/spsa.py",
        f"{T}/healing/test_registries.py",
        ("self._move(trained, seed, there - here)", "self._move(trained, seed, there)"),
    ),
    *_mutants(
        "compress/healing/shelf.py",
        f"{T}/healing/test_shelf.py",
        ("self._end += -(-size // PAGE) * PAGE", "self._end += 0 * size"),
    ),
    *_mutants(
        "compress/healing/adapted.py",
        f"{T}/healing/test_adapted.py",
        (
            "sizes[own] = size_of(rest) / (size_of(other) * left.shape[1] ** 0.5)",
            "sizes[own] = size_of(rest) / size_of(other)",
        ),
        (
            "return (torch.arange(rank) < max(1, round(share * rank))).to(torch.float32)",
            "return (torch.arange(rank) >= rank - round(share * rank)).to(torch.float32)",
        ),
        ("if self.kept is not None and self.noise is not None:", "if self.kept is not None:"),
    ),
    *_mutants(
        "compress/healing/student.py",
        f"{T}/healing/test_adapted.py",
        ("weight.trained[side] = replace(weight.trained[side], unit=unit)", "pass"),
    ),
    *_mutants(
        "compress/healing/trainables/nested.py",
        f"{T}/healing/test_adapted.py",
        ("return self.least + (1 - self.least) * drawn.random()", "return self.least"),
    ),
    *_mutants(
        "compress/healing/trainables/sorsa.py",
        f"{T}/healing/test_adapted.py",
        (
            "return Made(made.masters, lambda: torch.matmul(*made.make()) - start)",
            "return Made(made.masters, lambda: torch.matmul(*made.make()))",
        ),
    ),
    *_mutants(
        "compress/healing/penalties/orthonormal.py",
        f"{T}/healing/test_adapted.py",
        (
            'columns = one.master if "left" in name.rpartition(".")[2] else one.master.T',
            "columns = one.master",
        ),
    ),
    *_mutants(
        "compress/healing/preparing.py",
        f"{T}/healing/test_stage.py test_a_calibration_text_that_is_not_here_is_named",
        ("local_text(data)", "pass"),
    ),
    *_mutants(
        "compress/train/masks/gg.py",
        "tests/compress/train/test_masks.py",
        (
            "return alpha * nu * (size / alpha + FLAT).pow(nu - 1)",
            "return alpha * (size / alpha + FLAT).pow(nu - 1)",
        ),
    ),
    *_mutants(
        "compress/train/masks/groups.py",
        "tests/compress/train/test_masks.py",
        ("return {name: longest(weight.T, sparsity).T for name, weight in weights.items()}", "pass"),
        (
            'kept = {"", *(blocks[int(place)] for place in order)}',
            "kept = {blocks[int(place)] for place in order}",
        ),
    ),
    *_mutants(
        "compress/runtime/ranks.py",
        "tests/compress/runtime/test_ranks.py",
        ("rank = max(1, round(share * layout.rank))", "rank = layout.rank"),
    ),
    *_mutants(
        "compress/healing/samplers/fresh.py",
        f"{T}/healing/test_registries.py",
        (
            "passes.append(torch.randperm(windows, generator=generator) * length + shift)",
            "passes.append(torch.randperm(windows, generator=generator) * (length - 1) + shift)",
        ),
    ),
    # Allocators
    *_mutants(
        "compress/planning/targets.py",
        f"{T}/planning/test_targets.py",
        ('if pattern == "head" and view.in_head:', "if False:"),
    ),
    *_mutants(
        "compress/formats/gguf/tokenizer_checks.py",
        f"{T}/formats/gguf/test_tokenizer.py",
        ('if step.get("type") not in ("NFC", "NFKC"):', "if False:"),
        ("if not escaped:", "if False:"),
        ('if model.get("byte_fallback"):', "if False:"),
    ),
    *_mutants(
        "compress/formats/gguf/placement.py",
        f"{T}/formats/gguf/test_architectures.py",
        ("return found is not None and int(found.group(1)) >= blocks", "return False"),
    ),
    *_mutants(
        "compress/system/scratch.py",
        f"{T}/system/test_scratch.py",
        ("weakref.finalize(kept, stack.close)", "kept.__dict__"),
    ),
    *_mutants(
        "compress/planning/imatrix.py",
        f"{T}/planning/test_imatrix.py",
        (
            "columns, matrix = weight.view.shape[1], here.expert or 0",
            "columns, matrix = weight.view.shape[1], 0",
        ),
        ("if here.tensor not in entries:", "if False:"),
        ("_check_same_inputs(plan.recipe)", "pass"),
    ),
    *_mutants(
        "compress/checkpoint/writer.py",
        f"{T}/checkpoint/test_write_behind.py",
        ("self._thread.shutdown()", "pass"),
        ("if late is not None and error is None:", "if False:"),
        ("self._behind = None", "pass"),
    ),
    *_mutants(
        "compress/checkpoint/read_ahead.py",
        f"{T}/checkpoint/test_read_ahead.py",
        ("while start < end and not self._stop.is_set():", "while start < end:"),
        ("if found and found[-1][0] == info.file and start <= found[-1][2]:", "if False:"),
    ),
    *_mutants(
        "compress/pipeline/run.py",
        f"{T}/pipeline/test_run.py",
        ("self._read_on(writer, ahead, index + 1)", "pass"),
        ("return index not in writer.done or self._is_followed(writer, index)", "return True"),
    ),
    *_mutants(
        "compress/report/timeline.py",
        f"{T}/report/test_timeline.py",
        ("cells[at] = _MARKS[index % 2]", "cells[at] = _MARKS[0]"),
    ),
    *_mutants(
        "compress/pipeline/run.py",
        f"{T}/pipeline/test_head.py",
        ("through_last=self._head_waits(writer),", "through_last=False,"),
        (
            "return self._streamed is not None and (not last or self._head_waits(writer))",
            "return self._streamed is not None and not last",
        ),
    ),
    *_mutants(
        "compress/calibrate/stream.py",
        f"{T}/calibrate/test_head_inputs.py",
        (
            "dense = None if follows is None else forward(ids, self._read(follows, rows))",
            "dense = None",
        ),
    ),
    *_mutants(
        "compress/planning/outside.py",
        f"{T}/planning/test_outside.py",
        ("if methods.needs & GRADIENT_NEEDS:", "if False:"),
        ("if skeleton.flow.without_head:", "if False:"),
    ),
    *_mutants(
        "compress/allocate/knapsack.py",
        f"{T}/allocate/test_knapsack.py",
        ("while len(hull) > 1 and _slope(hull[-2], point) <= _slope(hull[-2], hull[-1]):", "while False:"),
        (
            "if option.nbytes < whole and (not kept or option.loss < kept[-1].loss):",
            "if option.nbytes < whole:",
        ),
        (
            "return min([*found, _split(curves)], key=lambda choices: _lost(curves, choices))",
            "return found[0]",
        ),
        ("_fill(points, chosen, left)", "pass"),
        (
            "return {name: _at(one, high).choice for name, one in curves.items()}",
            "return {name: _at(one, low).choice for name, one in curves.items()}",
        ),
    ),
    *_mutants(
        "compress/allocate/sparsities.py",
        f"{T}/allocate/test_sparsities.py "
        "test_a_threshold_is_the_same_as_sorting_everything "
        "test_owl_weighs_blocks_by_their_size "
        "test_outliers_are_counted_by_the_root_of_the_importance "
        "test_a_bin_in_which_the_threshold_lies_is_shared_out",
        (
            "return {name: _bounded(target - gains[each.block] + mean) for name, each in found.items()}",
            "return {name: _bounded(target - gains[each.block]) for name, each in found.items()}",
        ),
        ("part = (wanted - before) / (after - before) if after > before else 0.0", "part = 1.0"),
        (
            "outliers = float((roots > multiple * roots.mean()).double().mean())",
            "outliers = float((importance > multiple * importance.mean()).double().mean())",
        ),
    ),
    *_mutants(
        "compress/allocate/shared_factors.py",
        f"{T}/allocate/test_shared_factors.py",
        ("return bool(within) and within[-1] < loss", "return bool(within)"),
    ),
    *_mutants(
        "compress/allocate/rank_curves.py",
        f"{T}/allocate/test_rank_curves.py",
        ("size -= (len(weights) - 1) * nbytes(layouts[0].right, (choice.rank, inputs))", "size -= 0"),
        ('return total if self.rules[weight.name] != "fisher" and total > 0 else 1.0', "return 1.0"),
        ("if same and len({weight.step for weight, _ in members}) == 1:", "if len(members) > 1:"),
    ),
    # Plans
    *_mutants(
        "compress/planning/memory.py",
        f"{T}/planning/test_memory.py",
        ("statistics_bytes(skeleton, at_once or part, needs)", "0"),
        (
            "dealt_solutions(part, _solver(part, needs, solvers or {}), processes),",
            "0,",
        ),
        ("activations = all_states if room is None or all_states <= room else 0", "activations = 0"),
        (
            "(_COPIES.get(one, _SOLVER_WEIGHTS) for one in solvers.get(view.name, ())),",
            "(_SOLVER_WEIGHTS for one in solvers.get(view.name, ())),",
        ),
    ),
    *_mutants(
        "compress/planning/batches.py",
        f"{T}/planning/test_memory.py",
        ("tokens = length * min(windows, recipe.calibrate.samples)", "tokens = length * windows"),
    ),
    *_mutants(
        "compress/planning/batches.py",
        f"{T}/planning/test_batches.py",
        ("return copy + products + kept", "return copy + kept"),
        ("chunk = _WIDE_CHUNK if columns > _WIDE else _CHUNK", "chunk = _CHUNK"),
        ("pairs = min(-(-tokens // 2), chunk // 2)", "pairs = chunk // 2"),
    ),
    *_mutants(
        "compress/planning/dealt.py",
        f"{T}/planning/test_dealt.py",
        ("return max(solver + solved // processes, solved)", "return solver"),
        ("return max(largest, min(_SENT, activations // processes))", "return largest"),
    ),
    *_mutants(
        "compress/planning/targets.py",
        f"{T}/planning/test_targets.py",
        (
            'return re.match(pattern.removeprefix("re:"), view.name) is not None',
            'return re.search(pattern.removeprefix("re:"), view.name) is not None',
        ),
        (
            "return [view for view in targeted if view.name not in ignored], ignored",
            "return targeted, ignored",
        ),
    ),
    *_mutants(
        "compress/planning/fused_groups.py",
        f"{T}/planning/test_fused_groups.py",
        ("if len(set(schemes.values())) > 1:", "if False:"),
    ),
    # Scores
    *_mutants(
        "compress/score/metric.py",
        f"{T}/score/test_metric.py",
        ("return losses if left is None else losses * left", "return losses"),
        (
            "losses += moved.mul_(delta[:, strip]).sum(1, dtype=torch.float64)",
            "losses = moved.mul_(delta[:, strip]).sum(1, dtype=torch.float64)",
        ),
        (
            "moved = (delta[:, :start] @ right[:start, strip]).mul_(2)",
            "moved = delta[:, :start] @ right[:start, strip]",
        ),
        (
            "return left.unsqueeze(1) * self.columns(weight).unsqueeze(0)",
            "return self.columns(weight).unsqueeze(0)",
        ),
        ("return delta * self.weight", "return delta"),
    ),
    *_mutants(
        "compress/score/saliency.py",
        f"{T}/score/test_saliency.py",
        (
            "return weight.square() * statistics.diagonal",
            "return weight.square() * statistics.diagonal.sqrt()",
        ),
        (
            "return (mean + self.spread * (square - mean.square()).clamp_min(0).sqrt()).square()",
            "return mean.square()",
        ),
    ),
    *_mutants(
        "compress/score/fisher.py",
        f"{T}/score/test_fisher.py",
        ("left.diagonal().add_(self.damping * left.diagonal().mean())", "pass"),
        (
            'return Kron(Side(left), Side(gram if self.inputs == "compressed" and gram is not None else right))',
            "return Kron(Side(left), Side(right))",
        ),
    ),
    *_mutants(
        "compress/score/input_scale.py",
        f"{T}/score/test_activation.py",
        (
            "return Kron(right=Side(statistics.mean_abs ** (2 * self.alpha))) if statistics.tokens else Kron()",
            "return Kron(right=Side(statistics.mean_abs**self.alpha)) if statistics.tokens else Kron()",
        ),
    ),
    *_mutants(
        "compress/score/activation.py",
        f"{T}/score/test_activation.py",
        (
            "return Kron(right=Side(statistics.gram)) if statistics.tokens else Kron()",
            "return Kron(right=Side(statistics.gram))",
        ),
    ),
    # Calibration
    *_mutants(
        "compress/calibrate/accumulate.py",
        f"{T}/calibrate/test_accumulate.py",
        ("gram[:start, start:stop] = gram[start:stop, :start].T", "pass"),
        ("self.tokens += len(inputs)", "pass"),
        (
            'sums["cross"].addmm_(dense.float().T, counted)',
            'sums["cross"].addmm_(counted.T, dense.float())',
        ),
        (
            "self._sample, self._stride = self._sample[::2].clone(), self._stride * 2",
            "self._sample = self._sample[::2].clone()",
        ),
        ('sums["mean_abs"].add_(x.abs().sum(0))', 'sums["mean_abs"].add_(x.sum(0).abs())'),
    ),
    *_mutants(
        "compress/calibrate/experts.py",
        f"{T}/calibrate/test_experts.py",
        ("self._report(name, expert, rows[rows.any(-1)])", "self._report(name, expert, rows)"),
    ),
    *_mutants(
        "compress/calibrate/gradient_sums.py",
        f"{T}/calibrate/test_kfac.py",
        (
            "whole = output_gradients * len(output_gradients) ** 0.5",
            "whole = output_gradients",
        ),
        (
            "term = gradient.T @ left.to(gradient.device) @ gradient * self.share",
            "term = gradient.T @ gradient @ gradient.T @ gradient * self.share",
        ),
    ),
    *_mutants(
        "compress/calibrate/stream.py",
        f"{T}/calibrate/test_observe.py test_cross_moment_pairs_dense_and_compressed_inputs",
        ("dense = self._read(follows, rows)", "dense = hidden"),
    ),
    *_mutants(
        "compress/calibrate/stream.py",
        f"{T}/calibrate/test_stream.py test_advance_uses_the_weights_as_they_are_now",
        ("states.write(self._batches[batch], output)", "pass"),
    ),
    # Linear algebra
    *_mutants(
        "compress/linalg/cholesky.py",
        f"{T}/linalg/test_cholesky.py",
        (
            "order = torch.argsort(matrix.diagonal(), descending=True, stable=True)",
            "order = torch.argsort(matrix.diagonal(), descending=False, stable=True)",
        ),
        (
            "root.diagonal().add_(torch.where(zero, 1.0, used * scale))",
            "root.diagonal().add_(torch.where(zero, 1.0, 0.0))",
        ),
        ("panel.addmm_(matrix[:stop, stop:], matrix[start:stop, stop:].T, alpha=-1)", "pass"),
        (
            "torch.mm(matrix[rows, row:start], part[row:], out=above[rows]).neg_()",
            "torch.mm(matrix[rows, row:start], part[row:], out=above[rows])",
        ),
        (
            "diagonal.add_(torch.where(nonzero, damping * diagonal[nonzero].mean(), torch.zeros_like(diagonal)))",
            "diagonal.add_(damping * diagonal.mean())",
        ),
    ),
    *_mutants(
        "compress/linalg/factor_cache.py",
        f"{T}/linalg/test_factor_cache.py",
        ("if self._matrix is None or not _same(self._matrix, matrix):", "if self._matrix is None:"),
    ),
    *_mutants(
        "compress/linalg/conjugate_gradient.py",
        f"{T}/linalg/test_conjugate_gradient.py",
        (
            "residual = torch.addcmul(residual, length.expand_as(theta), moved, value=-1)",
            "residual = torch.addcmul(residual, length.expand_as(theta), moved, value=-0.5)",
        ),
        (
            "return torch.where(mask & (metric.weight > 0), weight, start * mask)",
            "return torch.where(metric.weight > 0, weight, start * mask)",
        ),
        ("residual = residual - length * moved", "residual = residual + length * moved"),
    ),
    *_mutants(
        "compress/linalg/admm.py",
        f"{T}/linalg/test_admm.py",
        ("dual.add_(free.sub_(point), alpha=penalty)", "dual.add_(free.sub_(point), alpha=-penalty)"),
        ("normalised = side.matrix / root / root.unsqueeze(1)", "normalised = side.matrix / root"),
    ),
    *_mutants(
        "compress/linalg/weighted_svd.py",
        f"{T}/linalg/test_weighted_svd.py",
        ("left = _times(inverse.T if inverse.ndim == 2 else inverse, vectors)", "left = vectors"),
        (
            "energy, vectors = energy.flip(0).clamp_min(0), vectors.flip(1)",
            "energy, vectors = energy.clamp_min(0), vectors",
        ),
        ("whole += full.T @ double(as_kron(metric).left).right_apply(full.T).T", "whole += full.T @ full"),
        ("return side if side.matrix is None or bool(side.matrix.any()) else Side()", "return side"),
    ),
    *_mutants(
        "compress/linalg/two_sided.py",
        f"{T}/linalg/test_two_sided.py",
        ("row_errors[place] = whiten[place[0].start // rows] @ (whole - values[place])", "pass"),
        ("moved[r].addmm_(step, right[c], alpha=-1)", "pass"),
    ),
    *_mutants(
        "compress/linalg/true_input.py",
        f"{T}/linalg/test_true_input.py",
        ("return weight + shift", "return weight - shift"),
        ("gap = cross - gram.full(weight.shape[1], weight.device)", "gap = cross"),
    ),
    *_mutants(
        "compress/linalg/rounding.py",
        f"{T}/linalg/test_rounding.py",
        (
            "codes = (values - self.low[i]).mul_(inverse[i]).round_().clamp_(0, self.top)",
            "codes = (values - self.low[i]).mul_(inverse[i]).round_()",
        ),
        ("inverse = torch.where(self.step != 0, 1 / self.step, 0.0)", "inverse = 1 / self.step"),
    ),
    *_mutants(
        "compress/linalg/value_table.py",
        f"{T}/linalg/test_value_table.py",
        (
            "return torch.bucketize(elements.contiguous(), (self.values[1:] + self.values[:-1]) / 2)",
            "return torch.bucketize(elements.contiguous(), self.values[1:])",
        ),
        ("return torch.lerp(self.values[lower], self.values[lower + 1], share)", "return self.values[lower]"),
    ),
    *_mutants(
        "compress/linalg/rounding_errors.py",
        f"{T}/linalg/test_rounding_errors.py",
        (
            "return trials.gather(0, errors.argmin(0, keepdim=True))[0]",
            "return trials.gather(0, errors.argmax(0, keepdim=True))[0]",
        ),
    ),
    # Structures
    *_mutants(
        "compress/structures/grids/integer.py",
        f"{T}/structures/grids/test_integer.py",
        (
            "importance = metric.columns(weight).clamp_min(0)",
            "importance = torch.ones_like(metric.columns(weight))",
        ),
        ("width = shape[1] // group_count(self.group_size, shape[1])", "width = shape[1]"),
        (
            "zero = torch.round(-low / scale).clamp_(self.lowest_zero, self.top)",
            "zero = torch.round(high / scale).clamp_(self.lowest_zero, self.top)",
        ),
        (
            "scales = (stored_scale(parameters.scale * ratio, self.scale_dtype) for ratio in ratios)",
            "scales = (parameters.scale * ratio for ratio in ratios)",
        ),
        (
            "scale = torch.where(high > -low, -high, -low) / (1 << (self.bits - 1))",
            "scale = torch.where(high > -low, high, -low) / (1 << (self.bits - 1))",
        ),
        (
            "return EvenColumns(scales, torch.minimum(first, last), torch.maximum(first, last), width)",
            "return EvenColumns(scales, first, last, width)",
        ),
        (
            "return grouped.amin(-1).clamp_max(0), grouped.amax(-1).clamp_min(0)",
            "return grouped.amin(-1), grouped.amax(-1)",
        ),
    ),
    *_mutants(
        "compress/structures/grids/affine.py",
        f"{T}/structures/grids/test_affine.py",
        (
            "return grouped.amin(-1), grouped.amax(-1)",
            "return grouped.amin(-1).clamp_max(0), grouped.amax(-1)",
        ),
        (
            "return (-parameters.zero * parameters.scale).to(self.scale_dtype).float()",
            "return -parameters.zero * parameters.scale",
        ),
        (
            "return -self.biases(parameters) / parameters.scale",
            "return torch.zeros_like(parameters.scale)",
        ),
    ),
    *_mutants(
        "compress/structures/scaled_table.py",
        f"{T}/structures/grids/test_nf4.py",
        ("scale = scales[column // self.group_size]", "scale = scales[0]"),
    ),
    *_mutants(
        "compress/structures/sparse/patterns.py",
        f"{T}/structures/sparse/test_patterns.py",
        ("return out * _kept_of(columns, self.sparsity)", "return _kept_of(out * columns, self.sparsity)"),
        ("return total - int(total * sparsity + _EDGE)", "return total - int(total * sparsity)"),
    ),
    *_mutants(
        "compress/structures/sparse/masked_grid.py",
        f"{T}/structures/sparse/test_masked_grid.py",
        (
            "return KeptOnGrid(mask, self.grid.fit(weight * mask, metric))",
            "return KeptOnGrid(mask, self.grid.fit(weight, metric))",
        ),
    ),
    *_mutants(
        "compress/structures/low_rank/factors.py",
        f"{T}/structures/low_rank/test_factors.py",
        ("right = refit_right(weight, left.values, metric)", "right = parts.right[:rank]"),
        ("rank = exact // MULTIPLE * MULTIPLE or exact", "rank = exact"),
    ),
    # Solvers
    *_mutants(
        "compress/solvers/gptq.py",
        f"{T}/solvers/test_gptq.py",
        (
            "better = loss < least if first + offset else None",
            "better = loss > least if first + offset else None",
        ),
        ("theta[chosen, self.order] = columns[:, rows].T", "theta[chosen, :] = columns[:, rows].T"),
    ),
    *_mutants(
        "compress/solvers/group_scales.py",
        f"{T}/solvers/test_group_scales.py "
        "test_each_row_of_a_group_takes_the_best_of_all_ranges "
        "test_improves_gptq",
        ("better = cost < least * (1 - 1e-4)", "better = cost > least"),
        ("optimum = old + torch.linalg.solve(corner, gradient.T).T", "optimum = self.target[:, columns]"),
    ),
    *_mutants(
        "compress/solvers/coordinate_descent.py",
        f"{T}/solvers/test_coordinate_descent.py "
        "test_one_round_is_exact_search_by_element "
        "test_never_uphill "
        "test_factors_are_least_squares",
        ("part.addr_(corner[i], steps[i], alpha=-1)", "pass"),
        ("gradient[last:].addmm_(gram[last:, first:last], steps, alpha=-1)", "pass"),
    ),
    *_mutants(
        "compress/solvers/coordinate_descent.py",
        f"{T}/solvers/test_coordinate_descent.py test_scales_are_refitted_for_the_rows_where_the_loss_falls",
        (
            "better = _row_losses(target - new_theta, gram) < _row_losses(target - theta, gram)",
            "better = _row_losses(target - new_theta, gram) > _row_losses(target - theta, gram)",
        ),
    ),
    *_mutants(
        "compress/solvers/sparsegpt.py",
        f"{T}/solvers/test_contract.py test_a_weight_that_is_stored_transposed_stays_as_it_is",
        (
            "columns = weight.T.clone(memory_format=torch.contiguous_format)",
            "columns = weight.T.contiguous()",
        ),
    ),
    *_mutants(
        "compress/solvers/sparsegpt.py",
        f"{T}/solvers/test_sparsegpt.py",
        ("columns[last:].addmm_(root[first:last, last:].T, errors, alpha=-1)", "pass"),
        (
            "cost = (part[ahead] / corner.diagonal()[ahead].unsqueeze(1)).square().T.contiguous()",
            "cost = part[ahead].square().T.contiguous()",
        ),
    ),
    *_mutants(
        "compress/solvers/learned_masks.py",
        f"{T}/solvers/test_learned_masks.py",
        ("logits.scatter_(0, first, ahead)", "pass"),
        ("mean = (self.shares * by_pattern).sum(0)", "mean = by_pattern.sum(0)"),
    ),
    *_mutants(
        "compress/solvers/reconstruct.py",
        f"{T}/solvers/test_reconstruct.py",
        ("gradient = gradient + pull * self.values * ~self.mask", "pass"),
        ("return self.values - (self.values * ~self.mask).detach()", "return self.values * self.mask"),
    ),
    *_mutants(
        "compress/solvers/gsq.py",
        f"{T}/solvers/test_gsq.py",
        (
            "moved = self.shares.mul_(numbers - mean).mul_(gradient)",
            "moved = self.shares.mul_(numbers).mul_(gradient)",
        ),
        ("codes[self.rows] = self.lowest + self.logits.argmax(0)", "codes[self.rows] = self.lowest"),
    ),
    *_mutants(
        "compress/linalg/scale_search.py",
        "tests/compress/linalg/test_scale_search.py",
        (
            "return scale, lattice.allowed(mean_code - mean / scale)",
            "return scale, lattice.allowed(mean_code)",
        ),
    ),
    *_mutants(
        "compress/calibrate/gradient_sums.py",
        "tests/compress/calibrate/test_kfac.py",
        (
            "inputs = (inputs * sizes.sqrt().unsqueeze(1)).to(inputs.dtype)",
            "inputs = inputs.to(inputs.dtype)",
        ),
    ),
    *_mutants(
        "compress/solvers/awp.py",
        f"{T}/solvers/test_awp.py",
        ("if loss < lowest:", "if loss > lowest:"),
        (
            "step = (inverse / (_SAFETY * _largest_eigenvalue(metric, inverse, weight))).expand_as(weight)",
            "step = (3 * inverse).expand_as(weight)",
        ),
        ("restart = not self.momentum or loss > last", "restart = not self.momentum"),
    ),
    *_mutants(
        "compress/solvers/hqq.py",
        f"{T}/solvers/test_hqq.py "
        "test_grids_are_those_of_a_loop_over_the_elements "
        "test_never_worse_than_rounding",
        ("better = (norm < best_norm) & (squares <= limit)", "better = norm > best_norm"),
        (
            "zeros = (codes - optimum).mean(-1).round().clamp(0, structure.top)",
            "zeros = (optimum - codes).mean(-1).round().clamp(0, structure.top)",
        ),
    ),
    *_mutants(
        "compress/solvers/adaround.py",
        f"{T}/solvers/test_adaround.py",
        (
            "stiffness[factor.order] = 1 / factor.root.square().sum(0)",
            "stiffness[:] = 1 / factor.root.square().sum(0)",
        ),
        ("better = after < before", "better = after >= before"),
    ),
    *_mutants(
        "compress/solvers/signround.py",
        f"{T}/solvers/test_signround.py "
        "test_steps_follow_the_sign_of_the_gradient "
        "test_lowers_the_error_of_the_output",
        ("if loss < best_loss:", "if loss > best_loss:"),
        (
            "variable.sub_(variable.grad.sign_(), alpha=step).clamp_(low, high)",
            "variable.add_(variable.grad.sign_(), alpha=step).clamp_(low, high)",
        ),
    ),
    *_mutants(
        "compress/solvers/lottery.py",
        f"{T}/solvers/test_lottery.py",
        ("if loss < least:", "if loss > least:"),
        ("self.scores.sub_(self.velocity, alpha=rate)", "self.scores.add_(self.velocity, alpha=rate)"),
    ),
    *_mutants(
        "compress/solvers/yaqa.py",
        f"{T}/solvers/test_yaqa.py test_it_never_costs_more_than_its_start",
        ("if gained > 0:", "if True:"),
    ),
    *_mutants(
        "compress/solvers/eora.py",
        f"{T}/solvers/test_eora.py",
        ("return Solution(theta, parameters, info) if after <= before else start", "return start"),
    ),
    *_mutants(
        "compress/solvers/lost.py",
        f"{T}/solvers/test_lost.py",
        (
            "kron.left, Side(right[rest][:, rest] - cross.T @ solve_symmetric(right[index][:, index], cross))",
            "kron.left, Side(right[rest][:, rest])",
        ),
    ),
    *_mutants(
        "compress/solvers/oats.py",
        f"{T}/solvers/test_oats.py",
        ("return mask, sparse / (rows.unsqueeze(1) * columns)", "return mask, sparse"),
    ),
    *_mutants(
        "compress/solvers/base.py",
        f"{T}/solvers/test_base.py",
        ("return self.weight if self.true_input is None else self.true_input", "return self.weight"),
    ),
    *_mutants(
        "compress/solvers/refit.py",
        f"{T}/solvers/test_refit.py test_a_start_that_is_nearer_than_rounded_least_squares_stays",
        ("if metric.loss(target - theta) > metric.loss(target - start.theta):", "if False:"),
    ),
    *_mutants(
        "compress/solvers/residual.py",
        f"{T}/solvers/test_residual.py",
        ("problem.weight - low,", "problem.weight,"),
    ),
    *_mutants(
        "compress/linalg/rounding.py",
        f"{T}/linalg/test_column_recursion.py",
        (
            "return torch.minimum(torch.maximum(rounded, self.low[group]), self.high[group])",
            "return rounded",
        ),
        ("group = column // self.width", "group = 0"),
    ),
    *_mutants(
        "compress/linalg/column_recursion.py",
        f"{T}/linalg/test_column_recursion.py",
        ("columns[after].addmm_(root[here, after].T, errors, alpha=-1)", "pass"),
        ("columns[after].addmm_(drift[here, after].T, part)", "pass"),
        ("part[i + 1 :].addr_(corner[i, i + 1 :], errors[i], alpha=-1)", "pass"),
        ("part[i + 1 :].addr_(drift[i, i + 1 :], part[i])", "pass"),
        ("losses += errors.square_().sum(0)", "losses = errors.square_().sum(0)"),
        ("groups = [place // rounder.width for place in places]", "groups = [0 for place in places]"),
    ),
    # Width pruning
    *_mutants(
        "compress/linalg/eliminate.py",
        f"{T}/linalg/test_eliminate.py",
        ("current = current - removed @ update", "pass"),
        ("inverse = inverse - inverse[:, columns] @ update", "pass"),
    ),
    # Budgets
    *_mutants(
        "compress/allocate/nested_choice.py",
        f"{T}/allocate/test_nested_choice.py",
        ("which = stacked.argmin(0)", "which = stacked.argmax(0)"),
        ("return left - offsets[number]", "return left"),
        ("if free.total(_seconds) <= seconds:", "if True:"),
    ),
    *_mutants(
        "compress/allocate/narrow_trials.py",
        f"{T}/prune/test_narrow.py",
        ("whole[:, kept] = narrow", "whole[:, : len(kept)] = narrow"),
    ),
    # Pipeline
    *_mutants(
        "compress/pipeline/weight.py",
        f"{T}/pipeline/test_weight.py test_a_solution_that_is_worse_than_plain_rounding_is_overruled",
        ("if nearest_error is not None and not error <= nearest_error * (1 + 1e-6):", "if False:"),
    ),
    # Checkpoints
    *_mutants(
        "compress/checkpoint/shards.py",
        f"{T}/checkpoint/test_shards.py",
        ("ordered = sorted(tensors, key=lambda item: -item[1].dtype.itemsize)", "ordered = list(tensors)"),
        ("if groups[-1] and filled + spec.nbytes > max_shard_size:", "if False:"),
    ),
    # Formats
    *_mutants(
        "compress/formats/compressed_tensors.py",
        f"{T}/formats/test_compressed_tensors.py",
        ("zero_points = any(_asymmetric(layout) for layout, _ in by_scheme)", "zero_points = False"),
        ("if _asymmetric(layout):", "if False:"),
    ),
    *_mutants(
        "compress/formats/weight_arguments.py",
        f"{T}/formats/test_compressed_tensors.py",
        ('"symmetric": getattr(layout, "symmetric", True),', '"symmetric": False,'),
    ),
    *_mutants(
        "compress/formats/left_dense.py",
        f"{T}/formats/test_compressed_tensors.py",
        ("return [name for name in names if name not in compressed]", "return []"),
    ),
    *_mutants(
        "compress/formats/linears_alone.py",
        f"{T}/formats/test_served_formats.py test_layers_that_stay_dense_are_named test_several_schemes",
        ("return [name for name in left_dense(weights, facts) if name.startswith(inside)]", "return []"),
        ("if len({weight.layout for weight in weights}) > 1:", "if False:"),
    ),
    *_mutants(
        "compress/formats/recode.py",
        f"{T}/formats/test_recode.py",
        ("bias = -(zero.float() * scale.float())", "bias = -zero.float()"),
        ("if bool((lowest & (grouped.amax(-1) == (1 << bits) - 1)).any()):", "if False:"),
        ("raised = grouped + lowest.unsqueeze(-1).to(codes.dtype)", "raised = grouped"),
        (
            "wrong = ~((stored - wide).abs() <= _LOSS * wide.abs())",
            "wrong = (stored - wide).abs() > _LOSS * wide",
        ),
    ),
    *_mutants(
        "compress/formats/mlx.py",
        f"{T}/formats/test_served_formats.py test_mlx_holds_embeddings_head_and_mixed_bits "
        "test_asymmetric_grids_of_mlx_have_fractions",
        (
            "others = {name: _entry(scheme) for name, scheme in schemes.items() if scheme != most}",
            "others = {}",
        ),
        ("if type(structure) is not IntegerGrid or structure.symmetric or not structure.packed:", "if True:"),
    ),
    *_mutants(
        "compress/formats/bitsandbytes.py",
        f"{T}/formats/test_bitsandbytes.py test_linear_modules_left_as_they_are_are_skipped_by_name",
        (
            "return [name for name in dict.fromkeys([*facts.linear_modules, *others]) if name not in compressed]",
            "return []",
        ),
    ),
    *_mutants(
        "compress/formats/dense.py",
        f"{T}/formats/test_dense.py",
        ("return part[start - box[0][0] : stop - box[0][0] : step]", "return part[start:stop]"),
    ),
    # Verification
    *_mutants(
        "compress/verification/files.py",
        f"{T}/verification/test_files.py",
        ("if any(int(p.min()) < -limit or int(p.max()) >= limit for p in _values(path, slot)):", "if False:"),
        ("if not all(bool(torch.isfinite(part).all()) for part in _values(path, slot)):", "if False:"),
        ("if (shape := next(_values(path, slot)).tolist()) != list(weight.view.shape):", "if False:"),
    ),
    *_mutants(
        "compress/verification/files.py",
        f"{T}/verification/test_checkpoint.py test_one_flipped_byte_names_its_tensor",
        ("if digest.hexdigest() != hashes[slot.name]:", "if False:"),
    ),
    *_mutants(
        "compress/verification/files.py",
        f"{T}/verification/test_checkpoint.py test_a_source_that_changed_since_is_found",
        ("if original is not None and piece != bytes(original[start : start + len(piece)]):", "if False:"),
    ),
    *_mutants(
        "compress/verification/files.py",
        f"{T}/verification/test_checkpoint.py test_a_header_that_swaps_two_tensors_is_found",
        ("if file.read(len(shard.header)) != shard.header:", "if False:"),
    ),
    *_mutants(
        "compress/verification/checkpoint.py",
        f"{T}/verification/test_checkpoint.py test_it_says_what_is_wrong",
        ("if key not in written or key not in expected or written[key] != expected[key]:", "if False:"),
    ),
    # Kernels
    *_mutants(
        "kernels/compress_kernels/layouts/bits.py",
        "tests/kernels/layouts/test_bits.py",
        ("words[:, :, word + 1] |= value >> (_WORD - shift)", "pass"),
        ("value = value | (unsigned[:, :, word + 1] << (_WORD - shift))", "pass"),
    ),
    *_mutants(
        "kernels/compress_kernels/layouts/gptq.py",
        "tests/kernels/layouts/test_gptq.py",
        ("stored = zero - 1 if self.less_one else zero", "stored = zero"),
        (
            "return (torch.arange(columns, device=device) // (columns // groups)).to(torch.int32)",
            "return torch.zeros(columns, dtype=torch.int32)",
        ),
        ("if self.less_one and int(zero.min()) < 1:", "if False:"),
    ),
    *_mutants(
        "kernels/compress_kernels/layouts/awq.py",
        "tests/kernels/layouts/test_awq.py",
        ("ORDER = (0, 4, 1, 5, 2, 6, 3, 7)", "ORDER = (0, 1, 2, 3, 4, 5, 6, 7)"),
    ),
    *_mutants(
        "kernels/compress_kernels/ops/affine_matmul/operands.py",
        "tests/kernels/ops/test_affine_matmul.py",
        (
            'offset = tensors["biases"].float() + scale.float() * (1 << (layout.bits - 1))',
            'offset = tensors["biases"].float()',
        ),
    ),
    *_mutants(
        "kernels/compress_kernels/layouts/integer.py",
        "tests/kernels/layouts/test_integer.py",
        (
            "return (zero.reshape(1) - (1 << (self.bits - 1))).to(torch.int32)",
            "return zero.reshape(1).to(torch.int32)",
        ),
        ("centred = grouped - zero.to(dtype).unsqueeze(-1)", "centred = grouped"),
    ),
    *_mutants(
        "kernels/compress_kernels/layouts/sparse.py",
        "tests/kernels/layouts/test_sparse.py",
        ("places = order[..., : self.n].sort(-1).values", "places = order[..., : self.n]"),
        ("return max(1, (m - 1).bit_length())", "return max(1, m.bit_length())"),
        (
            "packed = pack(torch.where(mask, codes, nothing).gather(1, columns), self.grid.bits)",
            "packed = pack(codes.gather(1, columns), self.grid.bits)",
        ),
    ),
    *_mutants(
        "kernels/compress_kernels/layouts/nf4.py",
        "tests/kernels/layouts/test_nf4.py",
        (
            '"weight_packed": ((pairs[:, 0] << 4) | pairs[:, 1]).unsqueeze(1),',
            '"weight_packed": ((pairs[:, 1] << 4) | pairs[:, 0]).unsqueeze(1),',
        ),
    ),
    *_mutants(
        "kernels/compress_kernels/ops/int8_matmul/operands.py",
        "tests/kernels/ops/test_int8_matmul.py",
        (
            "scale = torch.where(largest > 0, largest, 1.0) / 127",
            "scale = torch.where(largest > 0, largest, 1.0) / 128",
        ),
    ),
    *_mutants(
        "kernels/compress_kernels/ops/sixteen.py",
        "tests/kernels/ops/test_interleave.py",
        ("return tensor.copy_(made) if in_place else made", "return tensor.copy_(made)"),
        ("begin = first // ROWS * ROWS", "begin = first"),
        ("return _blocks(tensor)[rows // ROWS, :, rows % ROWS]", "return tensor[rows]"),
    ),
    *_mutants(
        "kernels/compress_kernels/ops/sparse_matmul/pairs.py",
        "tests/kernels/ops/test_sparse_pairs.py",
        ("mask.view(-1)[here - first * o.columns] = True", "pass"),
        ("return steps.long().cumsum(0)[steps != _SKIP] - 1", "return steps.long().cumsum(0) - 1"),
        ("values=room(values) if room else values,", "values=values,"),
    ),
    *_mutants(
        "kernels/compress_kernels/ops/sparse_matmul/operands.py",
        "tests/kernels/ops/test_sparse_matmul.py test_bad_tensors_are_named",
        ("if kept != layout.nnz:", "if False:"),
    ),
    *_mutants(
        "kernels/compress_kernels/ops/sparse_matmul/operands.py",
        "tests/kernels/ops/test_sparse_matmul.py test_a_mask_of_columns_that_are_not_there_is_named",
        ("if shape[1] % 8 and bool((mask[:, -1] >> (shape[1] % 8)).any()):", "if False:"),
    ),
    *_mutants(
        "kernels/compress_kernels/ops/epilogue.py",
        "tests/kernels/ops/test_composite.py test_equals_dense",
        ("total = total + residual", "total = total - residual"),
    ),
    *_mutants(
        "kernels/compress_kernels/ops/composite/__init__.py",
        "tests/kernels/ops/test_composite.py test_equals_dense test_bad_columns_are_refused",
        (
            "residual = part_product(x, None, residual, torch.float32)",
            "residual = part_product(x, None, None, torch.float32)",
        ),
        ("if bool((index.diff() <= 0).any()):", "if False:"),
    ),
    *_mutants(
        "kernels/compress_kernels/decode.py",
        "tests/kernels/ops/test_sparse_matmul.py test_reference",
        (
            "position = start[: mask.shape[0]][rows, None] + (kept.cumsum(1) - 1) * bits",
            "position = start[: mask.shape[0]][rows, None] + kept.cumsum(1) * bits",
        ),
        (
            "window = stream[byte].to(torch.int32) | (stream[following].to(torch.int32) << 8)",
            "window = stream[byte].to(torch.int32)",
        ),
    ),
    *_mutants(
        "kernels/compress_kernels/decode.py",
        "tests/kernels/ops/test_autograd.py test_in_pieces_as_at_once",
        ("return parameter if parameter.shape[0] == 1 else parameter[rows]", "return parameter"),
    ),
    *_mutants(
        "kernels/compress_kernels/ops/autograd.py",
        "tests/kernels/ops/test_autograd.py test_gradients_are_the_decoded_layers",
        (
            "db = dy.reshape(-1, dy.shape[-1]).sum(0, dtype=torch.float32).to(dtype).view(shape)",
            "db = dy.reshape(-1, dy.shape[-1]).mean(0, dtype=torch.float32).to(dtype).view(shape)",
        ),
    ),
    *_mutants(
        "kernels/compress_kernels/activations.py",
        "tests/kernels/test_activations.py",
        ("bottom = -scheme.top - 1", "bottom = -scheme.top + 1"),
        (
            "power = (bits >> 23).clamp(1, 254) - 127 - exponent",
            "power = (bits >> 23).clamp(1, 254) - 126 - exponent",
        ),
        ("return table[below + tie.to(below.dtype)].copysign(x)", "return table[below].copysign(x)"),
        ("scale = local / global_scale.float()", "scale = scale / global_scale.float()"),
    ),
    *_mutants(
        "compress/activations/scales.py",
        "tests/compress/activations/test_scales.py",
        (
            "tensors[ZERO_SUFFIX] = zero_point(scheme, lowest, stored.float()).to(torch.int8)",
            "tensors[ZERO_SUFFIX] = zero_point(scheme, lowest, 2 * stored.float()).to(torch.int8)",
        ),
    ),
    *_mutants(
        "compress/activations/observers.py",
        "tests/compress/activations/test_observers.py",
        ("if error < least:", "if error > least:"),
        ("outside = (1 - share) / 2", "outside = 1 - share"),
    ),
    *_mutants(
        "compress/score/histogram.py",
        "tests/compress/score/test_histogram.py",
        ("pairs = self.counts.view(-1, 2).sum(1)", "pairs = self.counts.view(2, -1).sum(0)"),
        ("widened._reach(result.limit)", "pass"),
    ),
    *_mutants(
        "compress/calibrate/simulate.py",
        "tests/compress/calibrate/test_simulate.py",
        (
            "handle = module.register_forward_pre_hook(hook, with_kwargs=True, prepend=True)",
            "handle = module.register_forward_pre_hook(hook, with_kwargs=True)",
        ),
        ("args = tuple(changed)", "pass"),
    ),
    *_mutants(
        "compress/transforms/smoothquant.py",
        "tests/compress/transforms/test_smoothquant.py test_the_strength_of_least_error_is_taken",
        ("scaled_inputs = self.inputs / scale", "scaled_inputs = self.inputs * scale"),
    ),
    *_mutants(
        "compress/models/kv_cache.py",
        "tests/compress/models/test_kv_cache.py test_what_is_stored_is_attended_to",
        ("keys, values = self._store(keys, values)", "self._store(keys, values)"),
    ),
    *_mutants(
        "compress/linalg/float_scales.py",
        "tests/compress/linalg/test_float_scales.py",
        (
            "return torch.bucketize(elements.contiguous(), torch.where(even, lower, halfway))",
            "return torch.bucketize(elements.contiguous(), halfway)",
        ),
        ("better = error < least", "better = error > least"),
        (
            'return range(-2, 3) if form == "e8m0" else range(-5, 8) if form == "e4m3" else range(-5, 9)',
            'return range(-2, 3) if form == "e8m0" else range(-1, 2) if form == "e4m3" else range(-5, 9)',
        ),
    ),
    *_mutants(
        "kernels/compress_kernels/layouts/floats.py",
        "tests/kernels/layouts/test_floats.py",
        (
            '"weight_packed": octets[:, ::2] | (octets[:, 1::2] << 4),',
            '"weight_packed": (octets[:, ::2] << 4) | octets[:, 1::2],',
        ),
        (
            "return scale.repeat_interleave(BLOCK, 0)[:rows]",
            "return scale.repeat_interleave(rows // len(scale), 0)[:rows]",
        ),
    ),
    *_mutants(
        "compress/pipeline/shared_scales.py",
        "tests/compress/pipeline/test_shared_scales.py",
        (
            "largest |= dict.fromkeys((view.name for view in group), max(float(v.abs().max()) for v in values))",
            "largest |= dict.fromkeys((view.name for view in group), min(float(v.abs().max()) for v in values))",
        ),
    ),
    *_mutants(
        "compress/planning/targets.py",
        f"{T}/planning/test_targets.py",
        (
            'return view.block is not None and view.name.endswith(f".{pattern}")',
            'return view.name.endswith(f".{pattern}")',
        ),
        (
            "places = [place + count if place < 0 else place for place in (first, last)]",
            "places = [abs(place) for place in (first, last)]",
        ),
    ),
    *_mutants(
        "compress/system/monitor.py",
        f"{T}/system/test_monitor.py",
        (
            "fresh = {key: value - self._recorded.get(key, 0.0) for key, value in now.items()}",
            "fresh = dict(now)",
        ),
        (
            "self.block_spans[name] = min(first, began), max(last, ended)",
            "self.block_spans[name] = began, ended",
        ),
    ),
    *_mutants(
        "compress/text/given.py",
        f"{T}/text/test_given.py",
        (
            "shown = row if kept is None else [t for t, keep in zip(row, kept[index], strict=True) if keep]",
            "shown = row",
        ),
    ),
    *_mutants(
        "compress/pipeline/hub.py",
        f"{T}/pipeline/test_hub.py",
        ("there = _hashes(api, url.repo_id, revision)", "there = dict[str, str]()"),
    ),
    *_mutants(
        "compress/report/card.py",
        f"{T}/report/test_card.py",
        (
            'kept = {key: value for key, value in kept.items() if not key.startswith("base_model")}',
            "kept = dict(kept)",
        ),
    ),
    *_mutants(
        "cli/compress_cli/status.py",
        "tests/cli/test_status.py",
        (
            "soon = not self._told or (fresh and passed >= FIRST)",
            "soon = fresh and passed >= FIRST",
        ),
    ),
    # The comparison of outputs, the further figures of an evaluation, and cold storage
    *_mutants(
        "compress/report/compare.py",
        f"{T}/report/test_compare.py",
        ("if a != b:", "if False:"),
        ("if b - a < math.hypot(x, y)", "if b - a > math.hypot(x, y)"),
        ("return alike[0] if len(alike) == 1 else None", "return alike[0] if alike else None"),
    ),
    *_mutants(
        "compress/evaluation/generation.py",
        f"{T}/evaluation/test_generation.py",
        ("again += len(grams) - len(set(grams))", "again += len(set(grams))"),
        (
            "same = (dense == other).to(torch.int64).cumprod(1).sum(1)",
            "same = (dense == other).to(torch.int64).sum(1)",
        ),
    ),
    *_mutants(
        "compress/evaluation/needle.py",
        f"{T}/evaluation/test_needle.py",
        ("at = round(depth * room)", "at = round((1 - depth) * room)"),
        (
            "nll -= float(scores.gather(-1, truth[:, None]).double().sum())",
            "nll -= float(scores.max(-1).values.sum())",
        ),
    ),
    *_mutants(
        "compress/evaluation/holdout.py",
        f"{T}/evaluation/test_holdout.py",
        ('asked[digest] = {"text": name, "asked": count + 1}', 'asked[digest] = {"text": name, "asked": 1}'),
    ),
    *_mutants(
        "compress/diagnose/control.py",
        f"{T}/diagnose/test_entries.py",
        ("found.append((lower + (noise < weight / step - lower)) * step)", "found.append(lower * step)"),
    ),
    *_mutants(
        "compress/checkpoint/cold/symbols.py",
        f"{T}/checkpoint/cold/test_symbols.py",
        ("codes |= stream[:, place::bits].astype(np.int32) << place", "codes |= stream[:, place::bits] << 1"),
    ),
    *_mutants(
        "compress/checkpoint/cold/file.py",
        f"{T}/checkpoint/cold/test_folder.py test_damage_is_noticed_and_leaves_nothing",
        ('matches = digest.hexdigest() == head["sha256"]', "matches = True"),
    ),
    *_mutants(
        "compress/structures/grids/value_table.py",
        f"{T}/structures/grids/test_value_table.py",
        ("better = loss < least", "better = loss > least"),
    ),
    *_mutants(
        "compress/solvers/deepshape.py",
        f"{T}/solvers/test_deepshape.py",
        ("gradient.addr_(step, gram[column], alpha=-1)", "gradient.addr_(step, gram[column], alpha=0)"),
    ),
    *_mutants(
        "compress/prune/twins.py",
        f"{T}/prune/test_twins.py",
        ("weaker = first if size[first] <= size[second] else second", "weaker = first"),
    ),
    *_mutants(
        "compress/runtime/decoding/record.py",
        f"{T}/runtime/decoding/test_program.py",
        ("if touched & wanted or (call.writes and touched - made):", "if touched & wanted:"),
        ("if call.writes or not _is_view(call):", "if not _is_view(call):"),
    ),
    *_mutants(
        "compress/serve/text_stream.py",
        f"{T}/serve/test_text_stream.py",
        ("keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)", "keep = 0"),
        ("done = self._held[: min(found)]", "done = self._held[: max(found)]"),
    ),
    *_mutants(
        "compress/serve/service.py",
        f"{T}/serve/test_app.py test_a_client_that_leaves_ends_its_answer",
        ("left.set()", "pass"),
    ),
    *_mutants(
        "compress/planning/economy.py",
        f"{T}/planning/test_economy.py",
        ("if bound.keeps(size):", "if True:"),
    ),
    *_mutants(
        "compress/planning/peak.py",
        f"{T}/planning/test_economy.py",
        (
            "return Held(base + max(ends, self.besides, blocks))",
            "return Held(base + max(self.besides, blocks))",
        ),
        (
            "return Held(base + max(ends, on_host), max(self.besides, blocks))",
            "return Held(base + max(ends, kept), max(self.besides, blocks))",
        ),
    ),
    *_mutants(
        "compress/planning/model_sizes.py",
        f"{T}/planning/test_economy.py",
        (
            "own = (one for name, one in skeleton.model.named_parameters() if name not in skeleton.tied)",
            "own = (one for name, one in skeleton.model.named_parameters() if name)",
        ),
    ),
    *_mutants(
        "compress/planning/gradient_pass.py",
        f"{T}/planning/test_gradient_pass.py",
        (
            "tokens = min(calibrate.samples * calibrate.length, max(calibrate.gradient_tokens, calibrate.length))",
            "tokens = calibrate.samples * calibrate.length",
        ),
        ("backwards = max(1, by_output + (PASSES + 1 if factors else by_weight))", "backwards = 1"),
    ),
    *_mutants(
        "compress/planning/parts.py",
        f"{T}/planning/test_memory.py",
        (
            "return sum({key: size for _, key, size in _inputs(skeleton, views, needs)}.values())",
            "return sum(size for _, _, size in _inputs(skeleton, views, needs))",
        ),
    ),
    *_mutants(
        "compress/planning/work.py",
        f"{T}/planning/test_solver_costs.py",
        (
            "solving = sum(machine.solver(name) * cost.at(machine) for name, cost in self.solving.items())",
            "solving = sum(cost.at(machine) for name, cost in self.solving.items())",
        ),
    ),
    *_mutants(
        "compress/system/machine.py",
        f"{T}/system/test_machine.py",
        (
            "return machine if (machine.cpu, machine.threads) == (cpu_name(), threads) else None",
            "return machine",
        ),
        ("kept = _read(path)", "kept: dict[str, object] = {}"),
    ),
    *_mutants(
        "compress/pipeline/block.py",
        f"{T}/pipeline/test_memory_bound.py test_passes_and_files_change_no_byte",
        ("waits = len(stages) == 1 < len(parts)", "waits = False"),
    ),
    *_mutants(
        "compress/calibrate/gradient_shares.py",
        f"{T}/calibrate/test_gradient_shares.py test_two_processes_sum_what_one_does "
        "test_a_block_is_sent_once_and_every_batch_is_somebodys",
        ("total[name].add(sums)", "pass"),
        ("walked.input_gradients.write(_rows(walked, share), found.input_gradients)", "pass"),
        ("walked.carried.update(share)", "pass"),
    ),
    *_mutants(
        "compress/planning/training_work.py",
        f"{T}/planning/test_training_work.py",
        (
            "return BlockRuns(turns * steps, turns * (1 + len(checked)) * len(judge))",
            "return BlockRuns(turns * steps, turns * len(checked) * len(judge))",
        ),
        ("every = steps + tried * trials", "every = steps"),
        ("measured = 1 + min(heal.evaluations, steps) + tried", "measured = 1 + heal.evaluations + tried"),
    ),
    *_mutants(
        "compress/pipeline/dealing.py",
        f"{T}/pipeline/test_dealing.py test_more_ranks_than_work test_shares_are_even_and_keep_inputs_together",
        ("if ranks.size > most:", "if ranks.size > most + 1:"),
        ("loads[least] += sum(map(_cost, unit))", "loads[least] += 0"),
    ),
    *_mutants(
        "compress/pipeline/block_shares.py",
        f"{T}/pipeline/test_block_shares.py test_two_ranks_take_the_gradients_of_one test_a_batch_of_training_is_divided",
        (
            "loss = block.loss(self.parts, leaves, place.device) / self.tokens",
            "loss = block.loss(self.parts, leaves, place.device)",
        ),
        ("return part, whole // part", "return part, 1"),
    ),
    *_mutants(
        "compress/verification/output_shares.py",
        f"{T}/verification/test_output_shares.py",
        (
            "return outputs.difference(self.folder, source, self.dtype, self.blocks) is None",
            "return True",
        ),
        ("if _contents(self.folder, source) != self.contents:", "if False:"),
        ("return right and all(found)", "return right"),
    ),
    *_mutants(
        "compress/healing/shares.py",
        f"{T}/healing/test_shares.py test_processes_that_read_other_files_all_notice",
        ("if found != keys[0]:", "if False:"),
    ),
    *_mutants(
        "compress/calibrate/forward_shares.py",
        f"{T}/calibrate/test_forward_shares.py test_products_are_as_exact_as_those_of_the_first_rank",
        ("with torch.no_grad(), products_of(self.precision):", "with torch.no_grad():"),
    ),
    *_mutants(
        "compress/pipeline/prepare.py",
        f"{T}/pipeline/test_dealing.py test_more_ranks_than_work_are_refused_before_gradients",
        ("check_work(plan, current_ranks())", "check_work(plan, None)"),
    ),
    *_mutants(
        "compress/serve/turns.py",
        f"{T}/serve/test_app.py test_more_requests_than_may_wait",
        ("if self.held > self.waiting:", "if False:"),
    ),
    *_mutants(
        "compress/runtime/decoding/decoder.py",
        f"{T}/runtime/decoding/test_decoder.py",
        ("self.program, self._checked = None, 0", "self._checked = 0"),
        ("if mask is not None and not bool(mask.all()):", "if False:"),
    ),
    *_mutants(
        "compress/runtime/decoding/decoder.py",
        f"{T}/runtime/decoding/test_decoder.py test_a_step_is_not_held_to_less_than_the_models_own_rounding",
        (
            "if not divergence <= most and not divergence <= 2 * self._of_rounding(token, cache, plain):",
            "if not divergence <= most:",
        ),
    ),
    *_mutants(
        "kernels/compress_kernels/decode.py",
        "tests/kernels/ops/test_sparse_matmul.py test_bits_of_a_mask_are_counted",
        (
            "return ((eights * 0x0101010101010101) >> 56).sum(1)",
            "return ((eights * 0x0101010101010101) >> 57).sum(1)",
        ),
    ),
    *_mutants(
        "kernels/compress_kernels/layouts/sparse.py",
        "tests/kernels/layouts/test_sparse.py test_one_place_that_cannot_be_is_refused_among_many",
        ("if bool(mask.all()):", "if True:"),
    ),
    *_mutants(
        "kernels/compress_kernels/pages.py",
        "tests/kernels/test_pages.py test_copies_are_equal_and_their_own",
        ("self._next = start + -(-nbytes // _ALIGNMENT) * _ALIGNMENT", "self._next = start"),
    ),
    *_mutants(
        "compress/calibrate/text_length.py",
        f"{T}/calibrate/test_text_length.py",
        ("if found < payload:", "if found < payload - 1:"),
        ("if found < 2 * payload:", "if found < payload:"),
    ),
    *_mutants(
        "compress/pipeline/prepare.py",
        f"{T}/pipeline/test_prepare.py test_a_text_that_is_too_short_is_refused_before_the_plan",
        ("text_note = _check_text(request, skeleton, recipe)", "text_note: tuple[str, ...] = ()"),
    ),
    *_mutants(
        "compress/pipeline/healed.py",
        f"{T}/pipeline/test_healed.py test_a_text_that_is_too_short_to_heal_on_is_refused_before_the_steps",
        ("check_healing_text(skeleton, section, section.data or calibrate.data, calibrate.bos)", "pass"),
    ),
    *_mutants(
        "compress/pipeline/budget.py",
        f"{T}/pipeline/test_budget_steps.py test_a_text_that_is_too_short_for_the_run_is_refused_before_the_search",
        ("check_calibration_text(skeleton, fitted)", "pass"),
    ),
    *_mutants(
        "compress/diagnose/run.py",
        f"{T}/diagnose/test_run.py test_texts_that_are_too_short_are_refused_before_the_first_pass",
        ("_check_length(skeleton, calibration, wanted)", "pass"),
    ),
    *_mutants(
        "compress/evaluation/compare.py",
        f"{T}/evaluation/test_tasks.py test_an_unknown_task_is_refused_before_a_model_is_loaded",
        ("check_tasks(tasks, include_path)", "pass"),
    ),
    *_mutants(
        "compress/formats/another_dtype.py",
        f"{T}/formats/test_another_dtype.py",
        ("if facts.dtype == torch.bfloat16 or len({weight.layout for weight in weights}) != 1:", "if True:"),
        ("and weight.activations is None", "and True"),
        ('if quantization.get("dequantize") or not formats & DECODED_TO_BF16:', "if True:"),
        (
            "if facts.dtype == torch.bfloat16 or not rounded or needs_another_dtype(weights, facts):",
            "if True:",
        ),
    ),
    *_mutants(
        "compress/system/files.py",
        f"{T}/system/test_files.py",
        ("if not os.path.isdir(path.parent):", "if False:"),
    ),
    *_mutants(
        "compress/pipeline/python_arguments.py",
        f"{T}/test_python_api.py",
        ("stack.enter_context(_without_path(text))", "pass"),
        ("if format is not None and not isinstance(format, str):", "if False:"),
        ("if gradients is not None and not isinstance(gradients, str | os.PathLike):", "if False:"),
    ),
    *_mutants(
        "compress/text/given.py",
        f"{T}/text/test_given.py",
        ("if isinstance(data, Mapping) and any(key in data for key in _KEYS):", "if False:"),
        (
            'elif hasattr(data, "iterrows"):  # a pandas.DataFrame, which iterates over the names of its columns',
            "elif False:",
        ),
    ),
    *_mutants(
        "compress/evaluation/tasks.py",
        f"{T}/evaluation/test_tasks.py test_a_task_that_cannot_run_is_refused_before_a_model_is_loaded",
        ('if getattr(task, "UNSAFE_CODE", False):', "if False:"),
        (
            "except Exception as error:  # a task's file can name any code and any data",
            "except KeyboardInterrupt as error:",
        ),
    ),
    *_mutants(
        "cli/compress_cli/samples.py",
        "tests/cli/test_samples.py",
        ("if room >= NARROWEST:", "if True:"),
        (
            'return printable(text.replace("\\r\\n", "\\n").replace("\\t", "    ")).replace("\\n", LINE_END)',
            'return text.replace("\\n", LINE_END)',
        ),
        (
            'return Text.assemble((same, "dim"), (PARTS, "bold"), rest)',
            'return Text.assemble((same, "dim"), rest)',
        ),
    ),
    *_mutants(
        "compress/pipeline/recommend.py",
        "tests/cli/test_recommend.py test_the_nearest_recipe_that_fits",
        ('if said == "read":', "if said is not None:"),
    ),
    *_mutants(
        "compress/pipeline/hub.py",
        f"{T}/pipeline/test_hub.py test_an_upload_that_could_not_begin_is_refused_before_the_run",
        ("if token is None and get_token() is None:", "if False:"),
    ),
    *_mutants(
        "compress/prune/linkage.py",
        f"{T}/prune/test_linkage.py",
        ("clusters[near] += clusters.pop(far)", "clusters[near] += clusters.pop(far)[:1]"),
        ("near, far = sorted(divmod(int(apart.argmin()), len(apart)))", "near, far = list(clusters)[:2]"),
    ),
    *_mutants(
        "compress/linalg/matching.py",
        f"{T}/linalg/test_matching.py",
        (
            "_, order = linear_sum_assignment((first.float() @ second.float().T).cpu().numpy(), maximize=True)",
            "_, order = linear_sum_assignment((second.float() @ first.float().T).cpu().numpy(), maximize=True)",
        ),
    ),
    *_mutants(
        "compress/prune/expert_likeness.py",
        f"{T}/prune/test_expert_likeness.py",
        ("chosen = hidden[-seen % every :: every]", "chosen = hidden[::every]"),
    ),
    *_mutants(
        "compress/prune/merge_experts.py",
        f"{T}/prune/test_merge_experts.py test_clusters_stay_in_their_routing_group_and_the_most_frequent_leads "
        "test_twins_become_one_and_nothing_is_lost",
        (
            "leader = max(members, key=lambda expert: (likeness.frequency[expert], -expert))",
            "leader = members[0]",
        ),
        (
            "for name, tensor in neurons.ordered(other, matched(rows, neurons.rows(other))).items():",
            "for name, tensor in other.items():",
        ),
    ),
    *_mutants(
        "compress/verification/outputs.py",
        f"{T}/verification/test_outputs.py test_weights_that_were_fitted_anew_and_no_step_takes_are_those_that_were_written",
        ("anew = skeleton.source.unread - put", "anew: set[str] = set()"),
    ),
    *_mutants(
        "compress/pipeline/budget_search.py",
        f"{T}/pipeline/test_budget_search.py test_of_pruned_and_merged_experts_the_better_ones_are_taken",
        (
            "removal, space = min(zip(removals, spaces, strict=True), key=lambda pair: pair[0])",
            "removal, space = max(zip(removals, spaces, strict=True), key=lambda pair: pair[0])",
        ),
    ),
)
