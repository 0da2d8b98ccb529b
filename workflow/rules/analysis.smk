# Turn sessions into tables, figures and the report. These rules run on the submitting host, even with
# a cluster, because they take seconds.

from optstate.analysis.figures import BOUNDARY, CURVES, name_differences


localrules:
    collect,
    measure_boundaries,
    compare,
    curves,
    boundary,
    differences,
    resets,
    epochs_to_target,
    learning_rate,
    report,


BASELINES = configuration.baselines(config)
OUTCOMES = configuration.list_outcomes(config)
PRESERVED = choose_plain(config, keep="all")
LOSSES = {b: at for b, at in configuration.list_resets(config).items() if b in BOUNDARIES}
# A figure of resets compares at least two boundaries that lose the state with the one that keeps it.
HAS_RESETS = any(
    len(found) > 2 and not all(map(LOSSES.get, found))
    for schedule in config["schedules"]
    if (found := [b for b in LOSSES if f"{schedule}-{b}" in experiment.runs.methods])
)
TABLES = [
    f"{RESULTS}/tables/{name}.csv"
    for name in ("steps", "epochs", "summary", "boundaries", "pairs", "comparisons")
]
OVERVIEWS = [f"overview_{boundary}" for boundary in BOUNDARIES]
RESETS = ["resets"] if HAS_RESETS else []
DIFFERENCES = name_differences(outcome["measure"] for outcome in OUTCOMES)
OF_DATASET = [
    *[*CURVES, "overview", *OVERVIEWS, *DIFFERENCES, *RESETS],
    *(BOUNDARY if HAS_BOUNDARIES else []),
]
FIGURES = [
    f"{RESULTS}/figures/{name}.{suffix}"
    for suffix in ("png", "svg")
    for name in [
        *[f"{dataset}/{name}" for dataset in DATASETS for name in OF_DATASET],
        *(["epochs_to_target"] if TARGETS else []),
        "learning_rate",
    ]
]
# Jobs verify the files that they read. A checksum file is `ancient`, because it changes only together
# with the files that it lists, and not all of them matter to each job.
COLLECTED = ancient(f"{RESULTS}/tables/collect.sha256")
COMPARED = ancient(f"{RESULTS}/tables/compare.sha256")
MEASURED = ancient(f"{RESULTS}/tables/boundaries.sha256")
SESSIONS = ancient(experiment.of_all_sessions("session.sha256"))
CARDS = [f"{experiment.prepared(dataset)}/dataset.json" for dataset in DATASETS]
PREPARED_CHECKSUMS = ancient(
    [f"{experiment.prepared(dataset)}/dataset.sha256" for dataset in DATASETS]
)
RULES_OF_DATASET = ["curves", "differences", *RESETS, *(["boundary"] if HAS_BOUNDARIES else [])]
FIGURE_CHECKSUMS = ancient(
    [
        f"{RESULTS}/figures/{name}.sha256"
        for name in [
            *[f"{dataset}/{name}" for dataset in DATASETS for name in RULES_OF_DATASET],
            *(["epochs_to_target"] if TARGETS else []),
            "learning_rate",
        ]
    ]
)
# If one of these files was deleted, `rule all` makes it anew, even if no other job needs it.
SMALL_FILES = [
    f"{RESULTS}/report.sha256",
    [COLLECTED, MEASURED, COMPARED, *FIGURE_CHECKSUMS],
    [*SESSIONS, *PREPARED_CHECKSUMS, *CARDS],
    *[experiment.of_all_sessions(name) for name in ("steps.csv", "epochs.csv", "made_by.json")],
]
TABLE_SOURCES = [f"analysis/{name}.py" for name in ("__init__", "files", "tables")]
FIGURE_SOURCES = [*TABLE_SOURCES, "analysis/figures/__init__.py", "analysis/figures/style.py"]
FIGURE_PACKAGES = locked("matplotlib", "numpy", "pandas")
RUNS_SOURCES = ["experiment/__init__.py", "experiment/runs.py"]
SHOWN_PACKAGES = [
    "torch", "torchvision", "numpy", "pillow", "pandas", "scipy", "matplotlib", "snakemake",
]  # fmt: skip


rule collect:
    input:
        experiment.of_all_sessions("steps.csv"),
        experiment.of_all_sessions("epochs.csv"),
        SESSIONS,
        PREPARED_CHECKSUMS,
        cards=CARDS,
        sources=sources(
            *RUNS_SOURCES,
            *[f"analysis/{name}.py" for name in ("__init__", "collect", "files", "sessions")],
        ),
    output:
        [
            report(
                f"{RESULTS}/tables/{name}.csv",
                caption="../report/tables.rst",
                category="Tables",
                labels={"table": name},
            )
            for name in ("epochs", "summary")
        ],
        f"{RESULTS}/tables/steps.csv",
        f"{RESULTS}/tables/collect.sha256",
    log:
        f"{LOGS}/collect.log",
    conda:
        "../../envs/optstate.yaml"
    params:
        runs_folder=lambda wildcards: experiment.runs_folder,
        runs=RUNS_JSON,
        epochs=config["sessions"],
        validate_every=config["validate_every"],
        has_weights="--has-weights" if config["weights"] else "",
        batch_size=config["batch_size"],
        train_per_class=json.dumps(config["train_per_class"]),
        targets=json.dumps(TARGETS, sort_keys=True),
        progress=untracked(lambda _: experiment.progress_folder),
        output=subpath(output[0], parent=True),
    message:
        "Collect the tables of all runs"
    shell:
        "python -m optstate.analysis.collect --runs-folder {params.runs_folder} "
        "--runs {params.runs:q} --cards {input.cards} --epochs {params.epochs} "
        "--validate-every {params.validate_every} {params.has_weights} "
        "--batch-size {params.batch_size} "
        "--train-per-class {params.train_per_class} "
        "--targets {params.targets:q} --progress {params.progress} --output {params.output} "
        "--log {log}"


rule measure_boundaries:
    input:
        f"{RESULTS}/tables/steps.csv",
        f"{RESULTS}/tables/epochs.csv",
        COLLECTED,
        sources=sources(*TABLE_SOURCES, "analysis/boundaries.py"),
    output:
        f"{RESULTS}/tables/boundaries.csv",
        f"{RESULTS}/tables/boundaries.sha256",
    log:
        f"{LOGS}/boundaries.log",
    conda:
        "../../envs/optstate.yaml"
    params:
        tables=subpath(input[0], parent=True),
        preserved=PRESERVED,
        first_boundary=FIRST_BOUNDARY,
        packages=locked("numpy", "pandas"),
    message:
        "Measure the effect of each boundary"
    shell:
        "python -m optstate.analysis.boundaries --tables {params.tables} "
        "--preserved {params.preserved:q} --first-boundary {params.first_boundary} --log {log}"


rule compare:
    input:
        f"{RESULTS}/tables/summary.csv",
        f"{RESULTS}/tables/boundaries.csv",
        COLLECTED,
        MEASURED,
        PREPARED_CHECKSUMS,
        cards=CARDS,
        sources=sources(*TABLE_SOURCES, "analysis/compare.py", "analysis/statistics.py"),
    output:
        report(
            f"{RESULTS}/tables/comparisons.csv",
            caption="../report/tables.rst",
            category="Tables",
            labels={"table": "comparisons"},
        ),
        f"{RESULTS}/tables/pairs.csv",
        f"{RESULTS}/tables/compare.sha256",
    log:
        f"{LOGS}/compare.log",
    conda:
        "../../envs/optstate.yaml"
    params:
        tables=subpath(input[0], parent=True),
        baselines=json.dumps({b: BASELINES[b] for b in BOUNDARIES}, sort_keys=True),
        margin=json.dumps(config["equivalence_margin"]),
        primary=json.dumps([list(outcome.values()) for outcome in OUTCOMES]),
        datasets=DATASETS,
        valid_per_class=json.dumps(config["valid_per_class"]),
        packages=locked("numpy", "pandas", "scipy"),
    message:
        "Compare the boundaries"
    shell:
        "python -m optstate.analysis.compare --tables {params.tables} "
        "--baselines {params.baselines:q} --margin {params.margin:q} "
        "--primary {params.primary:q} --datasets {params.datasets} --cards {input.cards} "
        "--valid-per-class {params.valid_per_class} --log {log}"


# Each figure's rule runs the module of the same name.


rule curves:
    input:
        f"{RESULTS}/tables/steps.csv",
        f"{RESULTS}/tables/epochs.csv",
        COLLECTED,
        sources=sources(*FIGURE_SOURCES, "analysis/figures/curves.py"),
    output:
        [
            report(
                f"{RESULTS}/figures/{{dataset}}/{name}.png",
                caption="../report/curves.rst",
                category="Curves",
                subcategory="{dataset}",
                labels={"measure": name.replace("_", " ")},
            )
            for name in (*CURVES, "overview")
        ],
        [
            report(
                f"{RESULTS}/figures/{{dataset}}/overview_{boundary}.png",
                caption="../report/overview_boundary.rst",
                category="Boundaries",
                labels={"data set": "{dataset}", "boundary": boundary},
            )
            for boundary in BOUNDARIES
        ],
        [f"{RESULTS}/figures/{{dataset}}/{name}.svg" for name in (*CURVES, "overview", *OVERVIEWS)],
        f"{RESULTS}/figures/{{dataset}}/curves.sha256",
    log:
        f"{LOGS}/figures/{{dataset}}-curves.log",
    conda:
        "../../envs/optstate.yaml"
    params:
        tables=subpath(input[0], parent=True),
        output=subpath(output[0], parent=True),
        module="curves",
        options="--dataset {dataset}",
        packages=FIGURE_PACKAGES,
    message:
        "Draw {rule} in {params.output}"
    shell:
        "python -m optstate.analysis.figures.{params.module} --tables {params.tables} "
        "--output {params.output} {params.options} --log {log}"


use rule curves as boundary with:
    input:
        f"{RESULTS}/tables/steps.csv",
        COLLECTED,
        sources=sources(*FIGURE_SOURCES, "analysis/figures/boundary.py"),
    output:
        [
            report(
                f"{RESULTS}/figures/{{dataset}}/{name}.png",
                caption=f"../report/{name}.rst",
                category="Around the boundaries",
                labels={"data set": "{dataset}", "measure": name.replace("_", " ")},
            )
            for name in BOUNDARY
        ],
        [f"{RESULTS}/figures/{{dataset}}/{name}.svg" for name in BOUNDARY],
        f"{RESULTS}/figures/{{dataset}}/boundary.sha256",
    log:
        f"{LOGS}/figures/{{dataset}}-boundary.log",
    params:
        module="boundary",
        options=f"--dataset {{dataset}} --first-boundary {FIRST_BOUNDARY}",


use rule curves as differences with:
    input:
        f"{RESULTS}/tables/comparisons.csv",
        f"{RESULTS}/tables/pairs.csv",
        COMPARED,
        sources=sources(*FIGURE_SOURCES, "analysis/figures/differences.py"),
    output:
        [
            report(
                f"{RESULTS}/figures/{{dataset}}/{name}.png",
                caption="../report/differences.rst",
                category="The answer",
                labels={"figure": name.replace("_", " "), "data set": "{dataset}"},
            )
            for name in DIFFERENCES
        ],
        [f"{RESULTS}/figures/{{dataset}}/{name}.svg" for name in DIFFERENCES],
        f"{RESULTS}/figures/{{dataset}}/differences.sha256",
    log:
        f"{LOGS}/figures/{{dataset}}-differences.log",
    params:
        module="differences",
        options="--dataset {dataset} --measures " + " ".join(DIFFERENCES.values()),


use rule curves as resets with:
    input:
        f"{RESULTS}/tables/summary.csv",
        f"{RESULTS}/tables/boundaries.csv",
        COLLECTED,
        MEASURED,
        sources=sources(
            *FIGURE_SOURCES,
            *[f"analysis/{name}.py" for name in ("compare", "statistics", "figures/resets")],
        ),
    output:
        report(
            f"{RESULTS}/figures/{{dataset}}/resets.png",
            caption="../report/resets.rst",
            category="The answer",
            labels={"figure": "resets", "data set": "{dataset}"},
        ),
        f"{RESULTS}/figures/{{dataset}}/resets.svg",
        f"{RESULTS}/figures/{{dataset}}/resets.sha256",
    log:
        f"{LOGS}/figures/{{dataset}}-resets.log",
    params:
        module="resets",
        options=f"--dataset {{dataset}} --measure {OUTCOMES[0]['measure']} "
        f"--losses {shlex.quote(json.dumps(LOSSES, sort_keys=True))}",
        packages=[*FIGURE_PACKAGES, *locked("scipy")],


use rule curves as epochs_to_target with:
    input:
        f"{RESULTS}/tables/summary.csv",
        COLLECTED,
        sources=sources(*FIGURE_SOURCES, "analysis/figures/epochs_to_target.py"),
    output:
        report(
            f"{RESULTS}/figures/epochs_to_target.png",
            caption="../report/epochs_to_target.rst",
            category="The answer",
            labels={"figure": "epochs to target", "data set": "all"},
        ),
        f"{RESULTS}/figures/epochs_to_target.svg",
        f"{RESULTS}/figures/epochs_to_target.sha256",
    log:
        f"{LOGS}/figures/epochs_to_target.log",
    params:
        module="epochs_to_target",
        options=f"--targets {shlex.quote(json.dumps(TARGETS, sort_keys=True))}",


use rule curves as learning_rate with:
    input:
        f"{RESULTS}/tables/steps.csv",
        COLLECTED,
        sources=sources(*FIGURE_SOURCES, "analysis/figures/learning_rate.py"),
    output:
        report(
            f"{RESULTS}/figures/learning_rate.png",
            caption="../report/learning_rate.rst",
            category="Learning rate",
            labels={"figure": "learning rate"},
        ),
        f"{RESULTS}/figures/learning_rate.svg",
        f"{RESULTS}/figures/learning_rate.sha256",
    log:
        f"{LOGS}/figures/learning_rate.log",
    params:
        module="learning_rate",
        options="",


rule report:
    input:
        FIGURES,
        FIGURE_CHECKSUMS,
        COLLECTED,
        MEASURED,
        COMPARED,
        SESSIONS,
        PREPARED_CHECKSUMS,
        epochs=f"{RESULTS}/tables/epochs.csv",
        summary=f"{RESULTS}/tables/summary.csv",
        comparisons=f"{RESULTS}/tables/comparisons.csv",
        learning_rate=f"{RESULTS}/figures/learning_rate.png",
        boundaries=f"{RESULTS}/tables/boundaries.csv",
        steps=f"{RESULTS}/tables/steps.csv",
        cards=CARDS,
        made_by=experiment.of_all_sessions("made_by.json"),
        template="workflow/report/report.html.j2",
        texts=sorted(map(str, Path("workflow/report").glob("*.rst"))),
        sources=sources(
            *RUNS_SOURCES,
            "experiment/plan.py",
            *TABLE_SOURCES,
            *[
                f"analysis/{name}.py"
                for name in (
                    "figures/__init__",
                    "answers",
                    "compare",
                    "report",
                    "statistics",
                    "validity",
                )
            ],
        ),
    output:
        f"{RESULTS}/report.sha256",
        f"{RESULTS}/answer.txt",
        f"{RESULTS}/configuration.yaml",
        page=f"{RESULTS}/report.html",
    log:
        f"{LOGS}/report.log",
    conda:
        "../../envs/optstate.yaml"
    params:
        config=lambda wildcards: json.dumps(config),
        tables=subpath(input.summary, parent=True),
        figures=subpath(input.learning_rate, parent=True),
        runs_folder=lambda wildcards: experiment.runs_folder,
        runs=RUNS_JSON,
        plan=lambda wildcards: json.dumps(experiment.plan),
        planned=untracked(lambda _: f"{RESULTS}/plan.json"),  # Snakemake writes it when it starts
        preserved=PRESERVED,
        packages=locked(*SHOWN_PACKAGES, "docutils", "jinja2", "pyyaml"),
        shown=SHOWN_PACKAGES,
        resets="--has-resets" if HAS_RESETS else "",
        # The report shows the curves of LR range tests if there are any. As inputs, they would be
        # drawn again for the report whenever they are outdated. As a parameter, their checksums make
        # the report stale when curves are made, and nothing else.
        lr_range_tests=lambda wildcards: experiment.finished_tests(),
        command=untracked(lambda _: command_line(workflow)),
        commit=untracked(lambda _: commit()),
    message:
        "Write the report"
    shell:
        "python -m optstate.analysis.report --config {params.config:q} --tables {params.tables} "
        "--figures {params.figures} --runs-folder {params.runs_folder} --runs {params.runs:q} "
        "--cards {input.cards} --planned {params.planned} --plan {params.plan:q} "
        "--preserved {params.preserved:q} --template {input.template} --command {params.command:q} "
        "--commit={params.commit:q} {params.resets} --packages {params.shown} "
        "--lr-range-tests {params.lr_range_tests:q} --output {output.page} --log {log}"
