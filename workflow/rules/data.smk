# Fetch, unpack and decode data sets into arrays of pixels.


localrules:
    fetch,
    fetch_weights,  # compute nodes often have no internet access


# The archive is verified against its checksum, so a change of the source code cannot change it.
# Therefore the source files are not inputs.
rule fetch:
    output:
        archive="results/datasets/{dataset}/{key}/archive",
        checksum="results/datasets/{dataset}/{key}/archive.sha256",
    log:
        f"{LOGS}/fetch/{{dataset}}-{{key}}.log",
    conda:
        "../../envs/optstate.yaml"
    params:
        sha256=lambda wildcards: experiment.dataset_sha256[wildcards.dataset],
        location=untracked(experiment.archive_options),
    message:
        "Fetch {wildcards.dataset}"
    shell:
        "python -m optstate.data.fetch {params.location} --sha256 {params.sha256} "
        "--output {output.archive} --log {log}"


use rule fetch as fetch_weights with:
    output:
        archive="results/weights/{file}.pth",
        checksum="results/weights/{file}.pth.sha256",
    log:
        f"{LOGS}/fetch/{{file}}.log",
    params:
        sha256=lambda wildcards: experiment.file_hashes["weights"],
        location=untracked(experiment.weights_options),
    message:
        "Fetch {wildcards.file}"


PREPARED = "results/datasets/{dataset}/{key}/{image_size}px{holdout}"


rule prepare:
    input:
        archive=experiment.archive,
        sources=sources("data/__init__.py", "data/prepare.py", "data/unpack.py", "data/manifest.py"),
    output:
        f"{PREPARED}/train_images.npy",
        f"{PREPARED}/train_labels.npy",
        f"{PREPARED}/valid_images.npy",
        f"{PREPARED}/valid_labels.npy",
        f"{PREPARED}/dataset.sha256",
        card=f"{PREPARED}/dataset.json",
    log:
        f"{LOGS}/prepare/{{dataset}}-{{key}}-{{image_size}}px{{holdout}}.log",
    wildcard_constraints:
        image_size=r"\d+",
        holdout=r"(-valid\d[\d.e-]*(-seed\d+)?)?",
    conda:
        "../../envs/optstate.yaml"
    threads: 16  # at most; --cores limits them
    params:
        images=untracked(experiment.images_options),
        folder=subpath(output.card, parent=True),
        packages=locked("numpy", "pillow"),
    message:
        "Decode {wildcards.dataset} to {wildcards.image_size} px"
    shell:
        "python -m optstate.data.prepare {params.images} --image-size {wildcards.image_size} "
        "--workers {threads} --output {params.folder} --log {log}"
