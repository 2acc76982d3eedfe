"""The result of the demo's first phase on disk, so that a demo that is interrupted in the second one does not learn again."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskpro_deploy.errors import MaskProError
from maskpro_deploy.masks import MASKS_FILE, MaskSet
from maskpro_deploy.system.files import new_folder, write_json

if TYPE_CHECKING:
    from maskpro_deploy.demo.state import Demo
    from maskpro_deploy.learn import LearnResult

_FILE = "run.json"


def keep_masks(demo: Demo, result: LearnResult) -> None:
    """Write what a run that learned the masks gave, besides its checkpoint."""
    facts = {f.name: getattr(result, f.name) for f in dataclasses.fields(result) if f.name not in ("masks", "prior_masks")}
    facts |= {"curve": [dataclasses.asdict(p) for p in result.curve], "spent": dataclasses.asdict(result.spent)}
    facts["moved_by_layer"] = dict(result.moved_by_layer)
    facts["found"] = None if result.found is None else result.found.to_json()
    with new_folder(_folder(demo), force=True) as folder:
        result.prior_masks.save(folder / MASKS_FILE)
        write_json(folder / _FILE, {"run": _describe_run(demo), "result": facts})


def find_masks(demo: Demo) -> LearnResult | None:
    """What an earlier run of the same demo gave, if its second phase was interrupted; else None."""
    from maskpro_deploy.checkpoint import Checkpoint
    from maskpro_deploy.learn import LearnResult, Point
    from maskpro_deploy.learn.measuring import Spent
    from maskpro_deploy.learn.state import StateStore
    from maskpro_deploy.learn.transforms.search import Found

    if not StateStore.folder_for(demo.sparse).exists():
        return None
    try:
        content = json.loads((_folder(demo) / _FILE).read_text(encoding="utf-8"))
        masks, prior_masks = Checkpoint.open(demo.masked).masks, MaskSet.load(_folder(demo) / MASKS_FILE)
        if masks is None or content["run"] != _describe_run(demo):
            return None
        facts = content["result"]
        facts |= {"curve": tuple(Point(**p) for p in facts["curve"]), "spent": Spent(**facts["spent"])}
        if facts["found"] is not None:
            facts["found"] = Found.from_json(facts["found"], masks.transform)
        return LearnResult(masks=masks, prior_masks=prior_masks, **facts)
    except (OSError, ValueError, KeyError, TypeError, MaskProError):
        return None


def forget_masks(demo: Demo) -> None:
    """The second phase is done, too."""
    shutil.rmtree(_folder(demo), ignore_errors=True)


def _folder(demo: Demo) -> Path:
    return demo.out / "masked-run"


def _describe_run(demo: Demo) -> dict[str, Any]:
    return {"budget_s": demo.budget_s, "seed": demo.seed, "pattern": str(demo.pattern)}
