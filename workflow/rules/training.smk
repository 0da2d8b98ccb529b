# From arrays to sessions. The first session of a schedule is shared by all of its boundaries,
# which fork from its checkpoint.



def weights_sha256():
    """What the first session starts from, by content."""
    if config["weights"] is None:
        return None
    path = Path(config["weights"])
    return files_sha256([path], CACHE / "weights.json")[path]


WEIGHTS_SHA256 = weights_sha256()


def weights_option(wildcards):
    """Where that is."""
    return f"--weights {shlex.quote(config['weights'])}" if config["weights"] else ""


def schedule_of(method):
    """A method is SCHEDULE-BOUNDARY."""
    return method.partition("-")[0]


def session_folder(dataset, method, seed, session):
    """Where a session of a run lies: the first one under its schedule's name alone."""
    name = schedule_of(method) if int(session) == 1 else method
    return f"{RUNS}/{dataset}/{name}/seed{seed}/session{session}"


def spec(wildcards):
    """What a job is told: all that its bits depend on, and nothing else."""
    return json.dumps(
        configuration.session_spec(
            config,
            dataset=wildcards.dataset,
            method=wildcards.get("method", wildcards.get("schedule")),
            seed=int(wildcards.seed),
            session=int(wildcards.get("session", 1)),
            weights_sha256=WEIGHTS_SHA256,
        ),
        sort_keys=True,
    )


def curves(wildcards):
    """The TensorBoard folders of the runs that a session is part of."""
    methods = (
        [wildcards.method]
        if "method" in wildcards.keys()
        else [m for m in METHODS if schedule_of(m) == wildcards.schedule]
    )
    root = f"{RESULTS}/tensorboard/{wildcards.dataset}"
    return [f"{root}/{method}/seed{wildcards.seed}" for method in methods]


def arrays(wildcards):
    """The arrays, whose content is told by the checksums in dataset.json, not by their times."""
    names = [f"{s}_{w}.npy" for s in ("train", "valid") for w in ("images", "labels")]
    return [ancient(f"{prepared(wildcards.dataset)}/{name}") for name in names]


def previous(wildcards):
    """The session before: its epochs.csv is new whenever its checkpoint is."""
    number = int(wildcards.session) - 1
    folder = session_folder(wildcards.dataset, wildcards.method, wildcards.seed, number)
    files = [ancient(f"{folder}/{name}") for name in ("checkpoint.pt", "steps.csv")]
    return [*files, f"{folder}/epochs.csv"]


def checkpoint_of(folder, is_last):
    """A checkpoint, removed when nothing needs it any more, if the configuration says so."""
    keep = config["keep_checkpoints"]
    kept = keep == "all" or (keep == "last" and is_last)
    return f"{folder}/checkpoint.pt" if kept else temp(f"{folder}/checkpoint.pt")


FIRST = f"{RUNS}/{{dataset}}/{{schedule}}/seed{{seed}}/session1"
LATER = f"{RUNS}/{{dataset}}/{{method}}/seed{{seed}}/session{{session}}"
TRAIN = (
    "{PYTHON} -m optstate.training.session --spec {params.spec:q} --dataset {params.dataset} "
    "--output {params.output} --progress {params.progress} --curves {params.curves} --log {log} "
)
TRAINING = {
    "sources": sources("training"),
    "packages": locked("numpy", "torch", "torchvision"),
    "progress": f"{RESULTS}/in_progress",
}


rule first_session:
    input:
        arrays=arrays,
        card=lambda wildcards: f"{prepared(wildcards.dataset)}/dataset.json",
        sources=TRAINING["sources"],
    output:
        checkpoint_of(FIRST, is_last=NUM_SESSIONS == 1),
        steps=f"{FIRST}/steps.csv",
        epochs=f"{FIRST}/epochs.csv",
    log:
        f"{LOGS}/train/{{dataset}}/{{schedule}}/seed{{seed}}-session1.log",
    params:
        spec=spec,
        packages=TRAINING["packages"],
        dataset=untracked(lambda wildcards: prepared(wildcards.dataset)),
        weights=untracked(weights_option),
        output=subpath(output.epochs, parent=True),
        progress=TRAINING["progress"],
        curves=untracked(curves),
    threads: config["cpu_threads"]
    resources:
        gpu=0 if config["device"] == "cpu" else 1,
    conda:
        "../../envs/optstate.yaml"
    message:
        "Train {wildcards.dataset} {wildcards.schedule} seed {wildcards.seed} session 1, shared"
    shell:
        TRAIN + "{params.weights}"


rule later_session:
    input:
        arrays=arrays,
        card=lambda wildcards: f"{prepared(wildcards.dataset)}/dataset.json",
        previous=previous,
        sources=TRAINING["sources"],
    output:
        checkpoint_of(LATER, is_last=False),
        steps=f"{LATER}/steps.csv",
        epochs=f"{LATER}/epochs.csv",
    log:
        f"{LOGS}/train/{{dataset}}/{{method}}/seed{{seed}}-session{{session}}.log",
    params:
        spec=spec,
        packages=TRAINING["packages"],
        dataset=untracked(lambda wildcards: prepared(wildcards.dataset)),
        previous=lambda wildcards, input: Path(input.previous[0]).parent,
        output=subpath(output.epochs, parent=True),
        progress=TRAINING["progress"],
        curves=untracked(curves),
    threads: config["cpu_threads"]
    resources:
        gpu=0 if config["device"] == "cpu" else 1,
    conda:
        "../../envs/optstate.yaml"
    message:
        "Train {wildcards.dataset} {wildcards.method} seed {wildcards.seed} "
        "session {wildcards.session}"
    shell:
        TRAIN + "--previous {params.previous}"


use rule later_session as last_session with:
    wildcard_constraints:
        session=str(NUM_SESSIONS),
    output:
        checkpoint_of(LATER, is_last=True),
        steps=f"{LATER}/steps.csv",
        epochs=f"{LATER}/epochs.csv",


ruleorder: last_session > later_session
