# From an archive, a folder or a package to arrays of pixels.


def content_key(dataset):
    """What a data set is, by content: the start of its archive's or manifest's SHA-256."""
    source = config["datasets"][dataset]
    if "folder" not in source:
        return configuration.archive_sha256(source)[:16]
    return folder_sha256(Path(source["folder"]), CACHE / f"{dataset}.json")[:16]


DATASET_KEYS = {dataset: content_key(dataset) for dataset in DATASETS}


def prepared(dataset):
    """The folder of a data set's arrays."""
    return f"results/datasets/{dataset}/{DATASET_KEYS[dataset]}/{config['image_size']}px"


def location(wildcards):
    """Where an archive comes from: the option for it."""
    source = config["datasets"][wildcards.dataset]
    if "packaged" in source:
        return f"--packaged {source['packaged']}"
    mirror = f" --mirror {shlex.quote(config['mirror'])}" if config["mirror"] else ""
    return f"--archive {shlex.quote(source['archive'])}{mirror}"


rule fetch:
    input:
        sources=sources("data/__init__.py", "data/fetch.py", "data/packaged.py"),
    output:
        "results/datasets/{dataset}/{key}/archive",
    log:
        f"{LOGS}/fetch/{{dataset}}-{{key}}.log",
    params:
        sha256=lambda wildcards: configuration.archive_sha256(config["datasets"][wildcards.dataset]),
        location=untracked(location),
    conda:
        "../../envs/optstate.yaml"
    message:
        "Fetch {wildcards.dataset}"
    shell:
        "{PYTHON} -m optstate.data.fetch {params.location} --sha256 {params.sha256} "
        "--output {output} --log {log}"


PREPARED = "results/datasets/{dataset}/{key}/{image_size}px"


def archive_to_prepare(wildcards):
    """The verified archive; a folder needs none. Its content is in its path, not in its time."""
    if "folder" in config["datasets"][wildcards.dataset]:
        return []
    return ancient(f"results/datasets/{wildcards.dataset}/{wildcards.key}/archive")


def images_to_prepare(wildcards):
    """The option that says where the images are."""
    source = config["datasets"][wildcards.dataset]
    if "folder" in source:
        sha256 = folder_sha256(Path(source["folder"]), CACHE / f"{wildcards.dataset}.json")
        return f"--folder {shlex.quote(source['folder'])} --sha256 {sha256}"
    return f"--archive results/datasets/{wildcards.dataset}/{wildcards.key}/archive"


rule prepare:
    input:
        archive=archive_to_prepare,
        sources=sources("data/__init__.py", "data/prepare.py", "data/manifest.py"),
    output:
        f"{PREPARED}/train_images.npy",
        f"{PREPARED}/train_labels.npy",
        f"{PREPARED}/valid_images.npy",
        f"{PREPARED}/valid_labels.npy",
        card=f"{PREPARED}/dataset.json",
    log:
        f"{LOGS}/prepare/{{dataset}}-{{key}}-{{image_size}}px.log",
    params:
        images=untracked(images_to_prepare),
        folder=subpath(output.card, parent=True),
        packages=locked("numpy", "pillow"),
    threads: workflow.cores or 1
    conda:
        "../../envs/optstate.yaml"
    message:
        "Decode {wildcards.dataset} to {wildcards.image_size} px"
    shell:
        "{PYTHON} -m optstate.data.prepare {params.images} --image-size {wildcards.image_size} "
        "--workers {threads} --output {params.folder} --log {log}"
