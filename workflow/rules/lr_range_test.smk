# The loss while the LR rises, before each session: a help in choosing LRs, which changes none.


localrules:
    lr_range_test,


LR_RANGE_TEST = f"{RESULTS}/lr_range_test/{{dataset}}/{{schedule}}-session{{number}}"


rule lr_range:
    input:
        arrays=arrays,
        card=lambda wildcards: f"{prepared(wildcards.dataset)}/dataset.json",
        previous=before_test,
        sources=sources("training", "lr_range_test.py"),
    output:
        curve=f"{LR_RANGE_TEST}.csv",
        figure=f"{LR_RANGE_TEST}.png",
    log:
        f"{LOGS}/lr_range_test/{{dataset}}/{{schedule}}-session{{number}}.log",
    wildcard_constraints:
        number=r"\d+",
    conda:
        "../../envs/optstate.yaml"
    threads: config["cpu_threads"]
    resources:
        gpu=0 if config["device"] == "cpu" else 1,
    params:
        spec=tested_spec,
        packages=locked("matplotlib", "numpy", "torch", "torch-lr-finder", "torchvision"),
        dataset=lambda wildcards, input: Path(input.card).parent,
        previous=lambda wildcards, input: (
            f"--previous {Path(input.previous[0]).parent}" if input.previous else ""
        ),
        weights=untracked(weights_option),
    message:
        "LR range test of {wildcards.dataset} {wildcards.schedule} before session {wildcards.number}"
    shell:
        "python -m optstate.lr_range_test --spec {params.spec:q} --dataset {params.dataset} "
        "{params.previous} {params.weights} --output {output.curve} --log {log}"


rule lr_range_test:
    input:
        [
            LR_RANGE_TEST.format(dataset=dataset, schedule=schedule, number=number) + ".csv"
            for dataset in DATASETS
            for schedule in sorted(
                {m.partition("-")[0] for m in METHODS if not is_uninterrupted(m)}
            )
            for number in range(1, NUM_SESSIONS + 1)
        ],
