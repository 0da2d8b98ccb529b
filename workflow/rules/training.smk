# From arrays to sessions. The first session of a schedule is shared by all of its boundaries,
# which fork from its checkpoint.

FIRST = f"{RUNS}/{{dataset}}/{{schedule}}/seed{{seed}}/session1"
UNINTERRUPTED_RUN = f"{RUNS}/{{dataset}}/{{method}}/seed{{seed}}/session1"
LATER = f"{RUNS}/{{dataset}}/{{method}}/seed{{seed}}/session{{session}}"
TRAINING_SOURCES = sources("training")
TRAINING_PACKAGES = locked("numpy", "torch", "torchvision")
TRAIN = (
    "python -m optstate.training.session --spec {params.spec:q} --dataset {params.dataset} "
    "--output {params.output} --progress {params.progress} --checkpoint-every {params.every:q} "
    "--curves {params.curves} --log {log}"
)


rule first_session:
    input:
        arrays=arrays,
        card=lambda wildcards: f"{prepared(wildcards.dataset)}/dataset.json",
        sources=TRAINING_SOURCES,
    output:
        checkpoint_of(FIRST, is_last=NUM_SESSIONS == 1),
        steps=f"{FIRST}/steps.csv",
        epochs=f"{FIRST}/epochs.csv",
        made_by=f"{FIRST}/made_by.json",
    log:
        f"{LOGS}/train/{{dataset}}/{{schedule}}/seed{{seed}}-session1.log",
    conda:
        "../../envs/optstate.yaml"
    threads: config["cpu_threads"]
    resources:
        gpu=0 if config["device"] == "cpu" else 1,
    params:
        spec=spec,
        packages=TRAINING_PACKAGES,
        dataset=lambda wildcards, input: Path(input.card).parent,
        weights=untracked(weights_option),
        output=subpath(output.epochs, parent=True),
        progress=untracked(lambda _: IN_PROGRESS),
        every=untracked(lambda _: json.dumps(config["checkpoint_every"])),
        curves=untracked(curves),
    message:
        "Train {wildcards.dataset} {wildcards.schedule} seed {wildcards.seed} session 1, shared"
    shell:
        f"{TRAIN} {{params.weights}}"


use rule first_session as uninterrupted_run with:
    output:
        checkpoint_of(UNINTERRUPTED_RUN, is_last=True),
        steps=f"{UNINTERRUPTED_RUN}/steps.csv",
        epochs=f"{UNINTERRUPTED_RUN}/epochs.csv",
        made_by=f"{UNINTERRUPTED_RUN}/made_by.json",
    log:
        f"{LOGS}/train/{{dataset}}/{{method}}/seed{{seed}}-session1.log",
    wildcard_constraints:
        method=f"[a-z0-9_]+-{UNINTERRUPTED}",
    message:
        "Train {wildcards.dataset} {wildcards.method} seed {wildcards.seed}"


rule later_session:
    input:
        arrays=arrays,
        card=lambda wildcards: f"{prepared(wildcards.dataset)}/dataset.json",
        previous=previous,
        sources=TRAINING_SOURCES,
    output:
        checkpoint_of(LATER, is_last=False),
        steps=f"{LATER}/steps.csv",
        epochs=f"{LATER}/epochs.csv",
        made_by=f"{LATER}/made_by.json",
    log:
        f"{LOGS}/train/{{dataset}}/{{method}}/seed{{seed}}-session{{session}}.log",
    # Runs are finished before others are begun: their checkpoints wait for less on the disk.
    priority: 1
    conda:
        "../../envs/optstate.yaml"
    threads: config["cpu_threads"]
    resources:
        gpu=0 if config["device"] == "cpu" else 1,
    params:
        spec=spec,
        packages=TRAINING_PACKAGES,
        dataset=lambda wildcards, input: Path(input.card).parent,
        previous=lambda wildcards, input: Path(input.previous[0]).parent,
        output=subpath(output.epochs, parent=True),
        progress=untracked(lambda _: IN_PROGRESS),
        every=untracked(lambda _: json.dumps(config["checkpoint_every"])),
        curves=untracked(curves),
    message:
        "Train {wildcards.dataset} {wildcards.method} seed {wildcards.seed} "
        "session {wildcards.session}"
    shell:
        f"{TRAIN} --previous {{params.previous}}"


use rule later_session as last_session with:
    output:
        checkpoint_of(LATER, is_last=True),
        steps=f"{LATER}/steps.csv",
        epochs=f"{LATER}/epochs.csv",
        made_by=f"{LATER}/made_by.json",
    wildcard_constraints:
        session=str(NUM_SESSIONS),
    priority: 2


ruleorder: uninterrupted_run > last_session > later_session
