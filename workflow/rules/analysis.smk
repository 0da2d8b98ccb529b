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


def rows_of_all_runs(name):
    """The tables of every session of every run."""
    folders = {
        session_folder(dataset, method, seed, session)
        for dataset in DATASETS
        for method in METHODS
        for seed in SEEDS
        for session in range(1, NUM_SESSIONS + 1)
    }
    return [f"{folder}/{name}.csv" for folder in sorted(folders)]


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
    params:
        runs=RUNS,
        datasets=DATASETS,
        methods=METHODS,
        seeds=SEEDS,
        sessions=NUM_SESSIONS,
        output=f"{RESULTS}/tables",
    conda:
        "../../envs/optstate.yaml"
    message:
        "Collect the tables of all runs"
    shell:
        "{PYTHON} -m optstate.analysis.collect --runs {params.runs} --datasets {params.datasets} "
        "--methods {params.methods} --seeds {params.seeds} --sessions {params.sessions} "
        "--output {params.output} --log {log}"


rule compare:
    input:
        f"{RESULTS}/tables/summary.csv",
        f"{RESULTS}/tables/steps.csv",
        sources=sources("analysis/__init__.py", "analysis/compare.py"),
    output:
        report(
            f"{RESULTS}/tables/comparisons.csv",
            caption="../report/tables.rst",
            category="Tables",
            labels={"table": "comparisons"},
        ),
    log:
        f"{LOGS}/compare.log",
    params:
        tables=f"{RESULTS}/tables",
        baseline=configuration.baseline(config),
        packages=locked("numpy", "pandas", "scipy"),
    conda:
        "../../envs/optstate.yaml"
    message:
        "Compare the boundaries"
    shell:
        "{PYTHON} -m optstate.analysis.compare --tables {params.tables} "
        "--baseline {params.baseline} --log {log}"


rule figures:
    input:
        f"{RESULTS}/tables/steps.csv",
        f"{RESULTS}/tables/epochs.csv",
        sources=sources("analysis/__init__.py", "analysis/figures.py"),
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
    params:
        tables=f"{RESULTS}/tables",
        output=f"{RESULTS}/figures/{{dataset}}",
        packages=FIGURE_PACKAGES,
    conda:
        "../../envs/optstate.yaml"
    message:
        "Draw the curves of {wildcards.dataset}"
    shell:
        "{PYTHON} -m optstate.analysis.figures --tables {params.tables} "
        "--dataset {wildcards.dataset} --output {params.output} --log {log}"


rule learning_rate_figure:
    input:
        f"{RESULTS}/tables/steps.csv",
        sources=sources("analysis/__init__.py", "analysis/figures.py"),
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
    params:
        tables=f"{RESULTS}/tables",
        output=f"{RESULTS}/figures",
        packages=FIGURE_PACKAGES,
    conda:
        "../../envs/optstate.yaml"
    message:
        "Draw the learning rates"
    shell:
        "{PYTHON} -m optstate.analysis.figures --tables {params.tables} "
        "--output {params.output} --log {log}"


rule report:
    input:
        FIGURES,
        f"{RESULTS}/tables/summary.csv",
        f"{RESULTS}/tables/comparisons.csv",
        cards=[f"{prepared(dataset)}/dataset.json" for dataset in DATASETS],
        template="workflow/report/report.html.j2",
        sources=sources("analysis/__init__.py", "analysis/report.py"),
    output:
        f"{RESULTS}/report.html",
    log:
        f"{LOGS}/report.log",
    params:
        config=json.dumps(config),
        tables=f"{RESULTS}/tables",
        figures=f"{RESULTS}/figures",
        packages=locked("jinja2", "pyyaml"),
    conda:
        "../../envs/optstate.yaml"
    message:
        "Write the report"
    shell:
        "{PYTHON} -m optstate.analysis.report --config {params.config:q} --tables {params.tables} "
        "--figures {params.figures} --cards {input.cards} --template {input.template} "
        "--output {output} --log {log}"
