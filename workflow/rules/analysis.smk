# From sessions to tables, figures and the report.

CURVES = ["train_loss", "train_accuracy", "valid_loss", "valid_accuracy", "overview"]
BOUNDARIES = sorted({method.partition("-")[2] for method in METHODS})
TABLES = [f"{RESULTS}/tables/{name}.csv" for name in ("steps", "epochs", "summary", "comparisons")]
FIGURES = [
    f"{RESULTS}/figures/{name}.{suffix}"
    for suffix in ("png", "svg")
    for name in [
        *[f"{dataset}/{curve}" for dataset in DATASETS for curve in CURVES],
        *[f"{dataset}/overview_{b}" for dataset in DATASETS for b in BOUNDARIES],
        "learning_rate",
    ]
]
FIGURE_PACKAGES = locked("matplotlib", "numpy", "pandas")


rule collect:
    input:
        rows_of_all_runs("steps"),
        rows_of_all_runs("epochs"),
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
        progress=untracked(lambda _: IN_PROGRESS),
        output=subpath(output[0], parent=True),
    message:
        "Collect the tables of all runs"
    shell:
        "python -m optstate.analysis.collect --runs {params.runs} --datasets {params.datasets} "
        "--methods {params.methods} --seeds {params.seeds} --sessions {params.sessions} "
        "--progress {params.progress} --output {params.output} --log {log}"


rule compare:
    input:
        f"{RESULTS}/tables/summary.csv",
        f"{RESULTS}/tables/steps.csv",
        sources=sources("analysis/__init__.py", "analysis/compare.py", "analysis/tables.py"),
    output:
        report(
            f"{RESULTS}/tables/comparisons.csv",
            caption="../report/tables.rst",
            category="Tables",
            labels={"table": "comparisons"},
        ),
    log:
        f"{LOGS}/compare.log",
    conda:
        "../../envs/optstate.yaml"
    params:
        tables=subpath(input[0], parent=True),
        baseline=configuration.baseline(config),
        packages=locked("numpy", "pandas", "scipy"),
    message:
        "Compare the boundaries"
    shell:
        "python -m optstate.analysis.compare --tables {params.tables} "
        "--baseline {params.baseline} --log {log}"


rule figures:
    input:
        f"{RESULTS}/tables/steps.csv",
        f"{RESULTS}/tables/epochs.csv",
        sources=sources("analysis/__init__.py", "analysis/figures.py", "analysis/tables.py"),
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
        "python -m optstate.analysis.figures --tables {params.tables} "
        "--dataset {wildcards.dataset} --output {params.output} --log {log}"


rule learning_rate_figure:
    input:
        f"{RESULTS}/tables/steps.csv",
        sources=sources("analysis/__init__.py", "analysis/figures.py", "analysis/tables.py"),
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
        "python -m optstate.analysis.figures --tables {params.tables} "
        "--output {params.output} --log {log}"


rule report:
    input:
        FIGURES,
        epochs=f"{RESULTS}/tables/epochs.csv",
        summary=f"{RESULTS}/tables/summary.csv",
        comparisons=f"{RESULTS}/tables/comparisons.csv",
        learning_rate=f"{RESULTS}/figures/learning_rate.png",
        cards=[f"{prepared(dataset)}/dataset.json" for dataset in DATASETS],
        template="workflow/report/report.html.j2",
        texts=sorted(map(str, Path("workflow/report").glob("*.rst"))),
        sources=sources("analysis/__init__.py", "analysis/report.py", "analysis/tables.py"),
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
        packages=locked("docutils", "jinja2", "pandas", "pyyaml"),
    message:
        "Write the report"
    shell:
        "python -m optstate.analysis.report --config {params.config:q} --tables {params.tables} "
        "--figures {params.figures} --cards {input.cards} --template {input.template} "
        "--output {output} --log {log}"
