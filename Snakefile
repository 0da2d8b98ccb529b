# Does it matter whether an optimizer's state is kept or thrown away between training sessions?
#   snakemake --cores 1 --resources gpu=1

import sys
from pathlib import Path

from snakemake.utils import min_version

min_version("9.19")

if set("{}") & set(workflow.basedir):
    sys.exit(f"error: {workflow.basedir}: Snakemake does not work in a folder with braces.")
if not Path(workflow.basedir).samefile("."):
    sys.exit(f"error: {Path.cwd()} is not the project's folder. Run `cd {workflow.basedir}` first.")


configfile: "config/config.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/training.smk"
include: "workflow/rules/analysis.smk"
include: "workflow/rules/lr_range_test.smk"


report: "workflow/report/workflow.rst"


rule all:
    default_target: True
    input:
        [f"{RESULTS}/{name}" for name in ("report.html", "answer.txt", "configuration.yaml")],
        FIGURES,
        TABLES,
        SMALL_FILES,
    message:
        "All results are there"


onstart:
    experiment.claim()


onsuccess:
    experiment.print_results(workflow.dag)


onerror:
    experiment.print_errors()
