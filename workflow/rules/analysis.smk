# From sessions to tables, figures and the report. Even with a cluster they are made on the
# submitting host: they take seconds.


localrules:
    collect,
    measure_boundaries,
    compare,
    curves,
    zoom,
    differences,
    epochs_to_target,
    learning_rate_figure,
    report,


CURVES = ["train_loss", "train_accuracy", "valid_loss", "valid_accuracy", "overview"]
ZOOMS = ["boundary_loss", "boundary_update_norm"] if HAS_BOUNDARIES else []
BOUNDARIES = sorted({method.partition("-")[2] for method in METHODS})
BASELINES = configuration.baselines(config)
TABLES = [
    f"{RESULTS}/tables/{name}.csv"
    for name in ("steps", "epochs", "summary", "boundaries", "pairs", "comparisons")
]
FIGURES = [
    f"{RESULTS}/figures/{name}.{suffix}"
    for suffix in ("png", "svg")
    for name in [
        *[f"{d}/{name}" for d in DATASETS for name in ["differences", *CURVES, *ZOOMS]],
        *[f"{d}/overview_{b}" for d in DATASETS for b in BOUNDARIES],
        *(["epochs_to_target"] if TARGETS else []),
        "learning_rate",
    ]
]
SHOWN_PACKAGES = [
    "torch", "torchvision", "numpy", "pillow", "pandas", "scipy", "statsmodels", "matplotlib",
    "snakemake",
]  # fmt: skip
FIGURE_PACKAGES = locked("matplotlib", "numpy", "pandas")


rule collect:
    input:
        of_all_sessions("steps.csv"),
        of_all_sessions("epochs.csv"),
        sources=sources("analysis/__init__.py", "analysis/collect.py"),
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
    log:
        f"{LOGS}/collect.log",
    conda:
        "../../envs/optstate.yaml"
    params:
        runs=subpath(input[0], ancestor=5),
        datasets=DATASETS,
        methods=METHODS,
        seeds=SEEDS,
        sessions=NUM_SESSIONS,
        targets=json.dumps(TARGETS, sort_keys=True),
        progress=untracked(lambda _: IN_PROGRESS),
        output=subpath(output[0], parent=True),
    message:
        "Collect the tables of all runs"
    shell:
        "python -m optstate.analysis.collect --runs {params.runs} --datasets {params.datasets} "
        "--methods {params.methods} --seeds {params.seeds} --sessions {params.sessions} "
        "--targets {params.targets:q} "
        "--progress {params.progress} --output {params.output} --log {log}"


rule measure_boundaries:
    input:
        f"{RESULTS}/tables/steps.csv",
        sources=sources("analysis/__init__.py", "analysis/boundaries.py", "analysis/tables.py"),
    output:
        f"{RESULTS}/tables/boundaries.csv",
    log:
        f"{LOGS}/boundaries.log",
    conda:
        "../../envs/optstate.yaml"
    params:
        tables=subpath(input[0], parent=True),
        preserved=configuration.plain(config, keep="all", usual="preserve"),
        packages=locked("numpy", "pandas"),
    message:
        "Measure what each boundary did"
    shell:
        "python -m optstate.analysis.boundaries --tables {params.tables} "
        "--preserved {params.preserved} --log {log}"


rule compare:
    input:
        f"{RESULTS}/tables/summary.csv",
        f"{RESULTS}/tables/boundaries.csv",
        sources=sources(
            *[f"analysis/{name}.py" for name in ("__init__", "compare", "statistics", "tables")]
        ),
    output:
        report(
            f"{RESULTS}/tables/comparisons.csv",
            caption="../report/tables.rst",
            category="Tables",
            labels={"table": "comparisons"},
        ),
        f"{RESULTS}/tables/pairs.csv",
    log:
        f"{LOGS}/compare.log",
    conda:
        "../../envs/optstate.yaml"
    params:
        tables=subpath(input[0], parent=True),
        baselines=json.dumps({b: BASELINES[b] for b in BOUNDARIES}, sort_keys=True),
        margin=config["equivalence_margin"],
        primary=[config["primary"]["measure"], config["primary"]["boundary"]],
        packages=locked("numpy", "pandas", "scipy", "statsmodels"),
    message:
        "Compare the boundaries"
    shell:
        "python -m optstate.analysis.compare --tables {params.tables} "
        "--baselines {params.baselines:q} --margin {params.margin} --primary {params.primary} "
        "--log {log}"


rule curves:
    input:
        f"{RESULTS}/tables/steps.csv",
        f"{RESULTS}/tables/epochs.csv",
        sources=figure_sources("curves"),
    output:
        [
            report(
                f"{RESULTS}/figures/{{dataset}}/{curve}.png",
                caption="../report/curves.rst",
                category="Curves",
                subcategory="{dataset}",
                labels={"measure": curve.replace("_", " ")},
            )
            for curve in CURVES
        ],
        [
            report(
                f"{RESULTS}/figures/{{dataset}}/overview_{boundary}.png",
                caption="../report/boundary.rst",
                category="Boundaries",
                labels={"data set": "{dataset}", "boundary": boundary},
            )
            for boundary in BOUNDARIES
        ],
        [f"{RESULTS}/figures/{{dataset}}/{curve}.svg" for curve in CURVES],
        [f"{RESULTS}/figures/{{dataset}}/overview_{boundary}.svg" for boundary in BOUNDARIES],
    log:
        f"{LOGS}/figures/{{dataset}}.log",
    conda:
        "../../envs/optstate.yaml"
    params:
        tables=subpath(input[0], parent=True),
        output=subpath(output[0], parent=True),
        packages=FIGURE_PACKAGES,
    message:
        "Draw the curves of {wildcards.dataset}"
    shell:
        "python -m optstate.analysis.figures.curves --tables {params.tables} "
        "--dataset {wildcards.dataset} --output {params.output} --log {log}"


rule zoom:
    input:
        f"{RESULTS}/tables/steps.csv",
        sources=figure_sources("zoom"),
    output:
        [
            report(
                f"{RESULTS}/figures/{{dataset}}/{zoom}.png",
                caption=f"../report/{zoom}.rst",
                category="Around the boundaries",
                labels={"data set": "{dataset}", "measure": zoom.replace("_", " ")},
            )
            for zoom in ("boundary_loss", "boundary_update_norm")
        ],
        f"{RESULTS}/figures/{{dataset}}/boundary_loss.svg",
        f"{RESULTS}/figures/{{dataset}}/boundary_update_norm.svg",
    log:
        f"{LOGS}/figures/{{dataset}}-zoom.log",
    conda:
        "../../envs/optstate.yaml"
    params:
        tables=subpath(input[0], parent=True),
        output=subpath(output[0], parent=True),
        packages=FIGURE_PACKAGES,
    message:
        "Draw the steps around the boundaries of {wildcards.dataset}"
    shell:
        "python -m optstate.analysis.figures.zoom --tables {params.tables} "
        "--dataset {wildcards.dataset} --output {params.output} --log {log}"


rule differences:
    input:
        f"{RESULTS}/tables/comparisons.csv",
        f"{RESULTS}/tables/pairs.csv",
        sources=figure_sources("differences"),
    output:
        report(
            f"{RESULTS}/figures/{{dataset}}/differences.png",
            caption="../report/differences.rst",
            category="The answer",
            labels={"figure": "differences", "data set": "{dataset}"},
        ),
        f"{RESULTS}/figures/{{dataset}}/differences.svg",
    log:
        f"{LOGS}/figures/{{dataset}}-differences.log",
    conda:
        "../../envs/optstate.yaml"
    params:
        tables=subpath(input[0], parent=True),
        output=subpath(output[0], parent=True),
        measure=config["primary"]["measure"],
        margin=config["equivalence_margin"],
        packages=FIGURE_PACKAGES,
    message:
        "Draw the differences of {wildcards.dataset}"
    shell:
        "python -m optstate.analysis.figures.differences --tables {params.tables} "
        "--dataset {wildcards.dataset} --measure {params.measure} --margin {params.margin} "
        "--output {params.output} --log {log}"


rule epochs_to_target:
    input:
        f"{RESULTS}/tables/summary.csv",
        sources=figure_sources("targets"),
    output:
        report(
            f"{RESULTS}/figures/epochs_to_target.png",
            caption="../report/epochs_to_target.rst",
            category="The answer",
            labels={"figure": "epochs to target", "data set": "all"},
        ),
        f"{RESULTS}/figures/epochs_to_target.svg",
    log:
        f"{LOGS}/figures/epochs_to_target.log",
    conda:
        "../../envs/optstate.yaml"
    params:
        tables=subpath(input[0], parent=True),
        output=subpath(output[0], parent=True),
        packages=FIGURE_PACKAGES,
    message:
        "Draw the epochs to the target"
    shell:
        "python -m optstate.analysis.figures.targets --tables {params.tables} "
        "--output {params.output} --log {log}"


rule learning_rate_figure:
    input:
        f"{RESULTS}/tables/steps.csv",
        sources=figure_sources("schedules"),
    output:
        report(
            f"{RESULTS}/figures/learning_rate.png",
            caption="../report/learning_rate.rst",
            category="Learning rate",
            labels={"figure": "learning rate"},
        ),
        f"{RESULTS}/figures/learning_rate.svg",
    log:
        f"{LOGS}/figures/learning_rate.log",
    conda:
        "../../envs/optstate.yaml"
    params:
        tables=subpath(input[0], parent=True),
        output=subpath(output[0], parent=True),
        packages=FIGURE_PACKAGES,
    message:
        "Draw the learning rates"
    shell:
        "python -m optstate.analysis.figures.schedules --tables {params.tables} "
        "--output {params.output} --log {log}"


rule report:
    input:
        FIGURES,
        epochs=f"{RESULTS}/tables/epochs.csv",
        summary=f"{RESULTS}/tables/summary.csv",
        comparisons=f"{RESULTS}/tables/comparisons.csv",
        learning_rate=f"{RESULTS}/figures/learning_rate.png",
        boundaries=f"{RESULTS}/tables/boundaries.csv",
        cards=[f"{prepared(dataset)}/dataset.json" for dataset in DATASETS],
        made_by=of_all_sessions("made_by.json"),
        template="workflow/report/report.html.j2",
        texts=sorted(map(str, Path("workflow/report").glob("*.rst"))),
        sources=sources(
            *[f"analysis/{name}.py" for name in ("__init__", "report", "statistics", "tables")]
        ),
    output:
        f"{RESULTS}/report.html",
    log:
        f"{LOGS}/report.log",
    conda:
        "../../envs/optstate.yaml"
    params:
        config=lambda wildcards: json.dumps(config),
        tables=subpath(input.summary, parent=True),
        figures=subpath(input.learning_rate, parent=True),
        runs=lambda wildcards, input: Path(input.made_by[0]).parents[4],
        packages=locked(*SHOWN_PACKAGES, "docutils", "jinja2", "pyyaml"),
        shown=SHOWN_PACKAGES,
        command=untracked(lambda _: invocation()),
        commit=untracked(lambda _: commit()),
    message:
        "Write the report"
    shell:
        "python -m optstate.analysis.report --config {params.config:q} --tables {params.tables} "
        "--figures {params.figures} --runs {params.runs} --cards {input.cards} "
        "--template {input.template} --command {params.command:q} --commit={params.commit:q} "
        "--packages {params.shown} --output {output} --log {log}"
