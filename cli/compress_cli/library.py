"""Library: what commands need of `compress` besides its public functions, imported at its first use.

So that the help, a completion and a mistyped option take no time: a module of commands imports this one and not torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from compress.system.lazy import lazy_attributes

if TYPE_CHECKING:
    from compress.allocate.amounts import parse_place
    from compress.checkpoint.quantized.read import method_of, quantization_of
    from compress.checkpoint.source import open_source
    from compress.diagnose import DIAGNOSIS, Diagnosis, DiagnosisSettings, diagnose
    from compress.evaluation import Evaluation
    from compress.formats.dense_source import open_dense
    from compress.formats.gguf.foreign import foreign_gguf, list_gguf
    from compress.healing.stage import heal_together
    from compress.pipeline.budget_steps import Copied
    from compress.pipeline.hub import check_upload
    from compress.pipeline.machine_time import measure_here, time_of
    from compress.pipeline.recommend import recommend
    from compress.pipeline.run import Result
    from compress.report import Report, print_report, write_report
    from compress.report.assemble import describe, versions
    from compress.report.compare import compare
    from compress.report.compare_page import write_comparison
    from compress.report.files import write_card
    from compress.report.further import samples
    from compress.report.schema import EVALUATION
    from compress.runtime.bench import BenchSettings, bench
    from compress.runtime.generate import generate
    from compress.serve import ServerSettings, open_engine, serve
    from compress.system.orders import release, serve_orders
    from compress.system.own_code import own_code
    from compress.system.ranks import Ranks, RanksApart, joined
    from compress.train.pretrain import TrainSettings, train
    from compress.verification.fresh_process import check_opens, reason_against
    from compress_cli import contents

__all__ = [
    "DIAGNOSIS",
    "EVALUATION",
    "BenchSettings",
    "Copied",
    "Diagnosis",
    "DiagnosisSettings",
    "Evaluation",
    "Ranks",
    "RanksApart",
    "Report",
    "Result",
    "ServerSettings",
    "TrainSettings",
    "bench",
    "check_opens",
    "check_upload",
    "compare",
    "contents",
    "describe",
    "diagnose",
    "foreign_gguf",
    "generate",
    "heal_together",
    "joined",
    "list_gguf",
    "measure_here",
    "method_of",
    "open_dense",
    "open_engine",
    "open_source",
    "own_code",
    "parse_place",
    "print_report",
    "quantization_of",
    "reason_against",
    "recommend",
    "release",
    "samples",
    "serve",
    "serve_orders",
    "time_of",
    "train",
    "versions",
    "write_card",
    "write_comparison",
    "write_report",
]

HOMES = {
    "BenchSettings": "compress.runtime.bench:BenchSettings",
    "Copied": "compress.pipeline.budget_steps:Copied",
    "DIAGNOSIS": "compress.diagnose:DIAGNOSIS",
    "Diagnosis": "compress.diagnose:Diagnosis",
    "DiagnosisSettings": "compress.diagnose:DiagnosisSettings",
    "EVALUATION": "compress.report.schema:EVALUATION",
    "Evaluation": "compress.evaluation:Evaluation",
    "Report": "compress.report:Report",
    "Result": "compress.pipeline.run:Result",
    "bench": "compress.runtime.bench:bench",
    "check_opens": "compress.verification.fresh_process:check_opens",
    "check_upload": "compress.pipeline.hub:check_upload",
    "contents": "compress_cli.contents",
    "describe": "compress.report.assemble:describe",
    "diagnose": "compress.diagnose:diagnose",
    "foreign_gguf": "compress.formats.gguf.foreign:foreign_gguf",
    "Ranks": "compress.system.ranks:Ranks",
    "heal_together": "compress.healing.stage:heal_together",
    "RanksApart": "compress.system.ranks:RanksApart",
    "joined": "compress.system.ranks:joined",
    "release": "compress.system.orders:release",
    "samples": "compress.report.further:samples",
    "serve_orders": "compress.system.orders:serve_orders",
    "versions": "compress.report.assemble:versions",
    "generate": "compress.runtime.generate:generate",
    "list_gguf": "compress.formats.gguf.foreign:list_gguf",
    "measure_here": "compress.pipeline.machine_time:measure_here",
    "time_of": "compress.pipeline.machine_time:time_of",
    "method_of": "compress.checkpoint.quantized.read:method_of",
    "open_dense": "compress.formats.dense_source:open_dense",
    "open_engine": "compress.serve:open_engine",
    "ServerSettings": "compress.serve:ServerSettings",
    "serve": "compress.serve:serve",
    "open_source": "compress.checkpoint.source:open_source",
    "own_code": "compress.system.own_code:own_code",
    "parse_place": "compress.allocate.amounts:parse_place",
    "print_report": "compress.report:print_report",
    "quantization_of": "compress.checkpoint.quantized.read:quantization_of",
    "TrainSettings": "compress.train.pretrain:TrainSettings",
    "train": "compress.train.pretrain:train",
    "reason_against": "compress.verification.fresh_process:reason_against",
    "recommend": "compress.pipeline.recommend:recommend",
    "compare": "compress.report.compare:compare",
    "write_card": "compress.report.files:write_card",
    "write_comparison": "compress.report.compare_page:write_comparison",
    "write_report": "compress.report:write_report",
}
"""Name → the module that it is imported from, and its name there."""

if not TYPE_CHECKING:
    __getattr__ = lazy_attributes(__name__, HOMES)
