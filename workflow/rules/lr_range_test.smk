# Measure the loss while the LR rises, before each session. The curves help to choose LRs. The report
# shows them, and no other job uses them.

from optstate.experiment.rules import LR_RANGE_TEST


localrules:
    lr_range_test,


CURVE = f"{experiment.tests_folder}/{LR_RANGE_TEST}"


rule lr_range:
    input:
        arrays=experiment.arrays,
        card=experiment.card,
        previous=experiment.before_test,
        sources=sources("training", "lr_range_test.py"),
    output:
        curve=f"{CURVE}.csv",
        others=[f"{CURVE}.{suffix}" for suffix in ("png", "json", "sha256")],
    log:
        f"{LOGS}/lr_range_test/{LR_RANGE_TEST}.log",
    # If the report is made in the same run, the tests start before the jobs that it waits for.
    priority: 3
    conda:
        "../../envs/optstate.yaml"
    threads: config["cpu_threads"]
    resources:
        gpu=0 if config["device"] == "cpu" else 1,
    params:
        spec=experiment.tested_spec,
        key=experiment.test_key,
        packages=locked("matplotlib", "numpy", "torch", "torch-lr-finder", "torchvision"),
        arrays=subpath(input.card, parent=True),
        start=untracked(experiment.test_start_options),
    message:
        "LR range test of {wildcards.dataset} {wildcards.schedule} before session {wildcards.number}"
    shell:
        "python -m optstate.lr_range_test --spec {params.spec:q} --key {params.key} "
        "--arrays {params.arrays} {params.start} --output {output.curve} --log {log}"


rule lr_range_test:
    input:
        expand(
            rules.lr_range.output,
            dataset=config["datasets"],
            schedule=experiment.tested_schedules,
            number=range(1, NUM_SESSIONS + 1),
        ),
