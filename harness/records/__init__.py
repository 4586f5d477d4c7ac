"""What crosses a stage: one class per line or file, a docstring under each field.

Every record is a pydantic model, so that a damaged or hand-edited file is found when it is read, not when it is used.
Imports neither torch nor numpy.
"""

from harness.records.base import (
    SCHEMA_VERSION,
    Contract,
    FinishReason,
    Fraction,
    Interval,
    Manifest,
    Name,
    Record,
    SchemaVersion,
    TokenId,
    Verdict,
)
from harness.records.comparison import (
    AgainstFewShot,
    Alarm,
    Breakdown,
    Comparison,
    Example,
    Figure,
    Pair,
    PairExamples,
    VariantResult,
)
from harness.records.gating import (
    Baseline,
    BaselineQuestion,
    BaselineVariant,
    GateCheck,
    GateExample,
    GateKind,
    GateResult,
    GateVerdict,
)
from harness.records.judging import JudgeReply, JudgeResult
from harness.records.marks import Agreement, HumanPair, Mark, MarksResult, Votes
from harness.records.prediction import Cost, Finding, Prediction, PredictionManifest, PredictionSet, Thinking
from harness.records.prompting import FirstPrompt, PromptForm
from harness.records.scoring import (
    MetricValue,
    NoModelScore,
    NoModelScores,
    Score,
    ScoreManifest,
    ScoreSet,
    TaughtScores,
)
from harness.records.shipping import ReportTitle, ShipCandidate, ShipCheck, Shipping, ShipVerdict
from harness.records.split import Question, SplitManifest
from harness.records.training import Artifact, ExportManifest, HistoryPoint, HowToRun, SeedRuns, TrainManifest

__all__ = [
    "SCHEMA_VERSION",
    "AgainstFewShot",
    "Agreement",
    "Alarm",
    "Artifact",
    "Baseline",
    "BaselineQuestion",
    "BaselineVariant",
    "Breakdown",
    "Comparison",
    "Contract",
    "Cost",
    "Example",
    "ExportManifest",
    "Figure",
    "Finding",
    "FinishReason",
    "FirstPrompt",
    "Fraction",
    "GateCheck",
    "GateExample",
    "GateKind",
    "GateResult",
    "GateVerdict",
    "HistoryPoint",
    "HowToRun",
    "HumanPair",
    "Interval",
    "JudgeReply",
    "JudgeResult",
    "Manifest",
    "Mark",
    "MarksResult",
    "MetricValue",
    "Name",
    "NoModelScore",
    "NoModelScores",
    "Pair",
    "PairExamples",
    "Prediction",
    "PredictionManifest",
    "PredictionSet",
    "PromptForm",
    "Question",
    "Record",
    "ReportTitle",
    "SchemaVersion",
    "Score",
    "ScoreManifest",
    "ScoreSet",
    "SeedRuns",
    "ShipCandidate",
    "ShipCheck",
    "ShipVerdict",
    "Shipping",
    "SplitManifest",
    "TaughtScores",
    "Thinking",
    "TokenId",
    "TrainManifest",
    "VariantResult",
    "Verdict",
    "Votes",
]
