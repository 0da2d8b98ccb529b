# Measure the loss while the LR rises, before each session. The curves help to choose LRs.
# No job uses them.


localrules:
    lr_range_test,


LR_RANGE_TEST = f"{RESULTS}/lr_range_test/{{dataset}}/{{schedule}}-session{{number}}"


rule lr_range:
    input:
        arrays=experiment.arrays,
        card=experiment.card,
        previous=experiment.before_test,
        sources=sources("training", "lr_range_test.py"),
    output:
        curve=f"{LR_RANGE_TEST}.csv",
        figure=f"{LR_RANGE_TEST}.png",
    log:
        f"{LOGS}/lr_range_test/{{dataset}}/{{schedule}}-session{{number}}.log",
    conda:
        "../../envs/optstate.yaml"
    threads: config["cpu_threads"]
    resources:
        gpu=0 if config["device"] == "cpu" else 1,
    params:
        spec=experiment.tested_spec,
        packages=locked("matplotlib", "numpy", "torch", "torch-lr-finder", "torchvision"),
        arrays=subpath(input.card, parent=True),
        start=untracked(experiment.test_start_options),
    message:
        "LR range test of {wildcards.dataset} {wildcards.schedule} before session {wildcards.number}"
    shell:
        "python -m optstate.lr_range_test --spec {params.spec:q} --arrays {params.arrays} "
        "{params.start} --output {output.curve} --log {log}"


rule lr_range_test:
    input:
        expand(
            f"{LR_RANGE_TEST}.csv",
            dataset=config["datasets"],
            schedule=experiment.tested_schedules,
            number=range(1, NUM_SESSIONS + 1),
        ),
