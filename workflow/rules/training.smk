# Train sessions from arrays. The boundaries of a schedule share its first session, and fork from
# its checkpoint. A session's `name` is its method, or its schedule before the first boundary.

SESSION = f"{experiment.runs_folder}/{FOLDER}"


rule first_session:
    input:
        arrays=experiment.arrays,
        card=experiment.card,
        previous=experiment.previous,
        sources=sources("training"),
    output:
        experiment.session_files(SESSION, is_last=NUM_SESSIONS == 1),
    log:
        f"{LOGS}/train/{{dataset}}/{{name}}/seed{{seed}}-session{{number}}.log",
    wildcard_constraints:
        number="1",
    conda:
        "../../envs/optstate.yaml"
    threads: config["cpu_threads"]
    resources:
        gpu=0 if config["device"] == "cpu" else 1,
    params:
        spec=experiment.spec,
        packages=locked("numpy", "torch", "torchvision"),
        arrays=subpath(input.card, parent=True),
        output=subpath(output[0], parent=True),
        start=untracked(experiment.start_options),
        progress=untracked(experiment.progress),
        every=untracked(lambda _: json.dumps(config["checkpoint_every"])),
        curves=untracked(experiment.curves),
    message:
        "Train {wildcards.dataset} {wildcards.name} seed {wildcards.seed} "
        "session {wildcards.number}"
    shell:
        "python -m optstate.training.session --spec {params.spec:q} --arrays {params.arrays} "
        "--output {params.output} --progress {params.progress} {params.start} "
        "--checkpoint-every {params.every:q} --curves {params.curves} --log {log}"


use rule first_session as uninterrupted_run with:
    output:
        experiment.session_files(SESSION, is_last=True),
    wildcard_constraints:
        name=f"[a-z0-9_]+-{UNINTERRUPTED}",
        number="1",


use rule first_session as later_session with:
    output:
        experiment.session_files(SESSION, is_last=False),
    wildcard_constraints:
        name="[a-z0-9_]+-[a-z0-9_-]+",
        number=r"[2-9]|[1-9]\d+",
    # Finish runs before starting others, so that their checkpoints can be removed early.
    priority: 1


use rule later_session as last_session with:
    output:
        experiment.session_files(SESSION, is_last=True),
    wildcard_constraints:
        name="[a-z0-9_]+-[a-z0-9_-]+",
        number=str(NUM_SESSIONS),
    priority: 2


ruleorder: uninterrupted_run > first_session > last_session > later_session
