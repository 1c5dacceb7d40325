"""Put every number and figure of a run on one page.

Reads: metrics.json and side files of the run's complete stages
Writes: index.html (one file, opens from disk), metrics.json, report.json (<stage>/<key> of all stages, among them
interrogate/<key>_after as eval found it, and recollection/<how>_<times seen>); with `compare`, comparison.html

python scripts/report.py recipes/laptop/report.yaml
python scripts/report.py recipes/laptop/report.yaml --compare output/other      # this run beside another one
"""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

from crawl2chat.comparison import comparison
from crawl2chat.recipe import parse_recipe
from crawl2chat.report import page
from crawl2chat.runs import Target, all_numbers, read_run
from crawl2chat.stage import finish, write_text


@dataclass
class ReportConfig:
    """Which run, which stages, and what they should reach."""

    run_dir: str = field(metadata={"help": "the folder that holds a folder for each stage", "reads": True})
    stages: list[str] = field(metadata={"help": "names of the stages, in order; a skipped one is left out"})
    output_dir: str = field(metadata={"help": "where the page goes"})
    targets: list[Target] = field(default_factory=list, metadata={"help": "numbers to reach"})
    compare: str | None = field(
        default=None, metadata={"help": "another run's folder, to compare with", "reads": True}
    )


RECIPE = (ReportConfig,)


def main(config: ReportConfig) -> None:
    # numbers
    run = replace(read_run(config.run_dir, config.stages), targets=config.targets)
    numbers = all_numbers(run)
    skipped = [stage for stage in config.stages if stage not in run.metrics]
    if skipped:
        print(f"report: left out, for want of a metrics.json: {', '.join(skipped)}")
    missing = [target.key for target in config.targets if target.key not in numbers]
    if missing:
        print(f"report: targets left out, for want of their numbers: {', '.join(missing)}")
    judged = [target.met(numbers[target.key]) for target in config.targets if target.key in numbers]

    # page
    output = Path(config.output_dir)
    html = page(run, config.targets)
    write_text(output / "index.html", html)
    write_text(output / "report.json", json.dumps(numbers, indent=1) + "\n")
    if config.compare:
        beside = comparison(run, read_run(config.compare, config.stages))
        write_text(output / "comparison.html", beside)
        print(f"report: {config.run_dir} beside {config.compare}: {(output / 'comparison.html').resolve()}")
    counts = {"stages": len(run.metrics), "targets": len(judged), "targets_reached": sum(judged)}
    finish(
        output,
        {**counts, "bytes": len(html.encode())},
        read=f"{len(run.metrics)} stages of {config.run_dir}",
        wrote=str(output),
        headline=f"{sum(judged)} of {len(judged)} targets reached",
    )
    print(f"open {(output / 'index.html').resolve()}")


if __name__ == "__main__":
    main(*parse_recipe(*RECIPE))
