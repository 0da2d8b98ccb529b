# How near the pipeline is to the limits of this machine: `snakemake bench`. Every measurement has
# all cores to itself.

BENCH_RESULTS = "results/bench"
BENCH_LOGS = "logs/bench"
BENCH = bench_settings()
BENCH_DEVICE = configuration.device_here()
MAIN_SIZE, *OTHER_SIZES = BENCH[BENCH_DEVICE]["image_sizes"]
AT_ALL_SIZES = ["loop", "data_path", "step", "sharing"]
BENCH_TABLES = [
    *[f"{MAIN_SIZE}px/{part}" for part in [*AT_ALL_SIZES, "prepare", "peers"]],
    *[f"{size}px/{part}" for size in OTHER_SIZES for part in AT_ALL_SIZES],
    "orchestration",
]
TRAINED_ON = f"{BENCH_RESULTS}/images-{BENCH['num_images']['peers']}"
ALL_CORES = 1000  # Snakemake gives no more than --cores


localrules:
    bench,
    bench_images,
    bench_arrays,
    bench_training,
    bench_data_path,
    bench_prepare,
    bench_peers,
    bench_orchestration,


rule bench:
    input:
        measures=expand("results/bench/{table}.csv", table=BENCH_TABLES),
        sources=sources("bench/measure.py", "bench/summary.py"),
    output:
        f"{BENCH_RESULTS}/summary.csv",
        f"{BENCH_RESULTS}/machine.json",
    log:
        f"{BENCH_LOGS}/summary.log",
    conda:
        "../../envs/optstate.yaml"
    params:
        folder=subpath(output[0], parent=True),
        size=MAIN_SIZE,
    message:
        "Put the measures together"
    shell:
        "python -m optstate.bench.summary --measures {input.measures} --main-size {params.size} "
        "--output {params.folder} --log {log}"


rule bench_images:
    input:
        archive=BENCH["archive"] or [],
        sources=sources("bench/images.py", "data/prepare.py"),
    output:
        directory(f"{BENCH_RESULTS}/images-{{number}}"),
    log:
        f"{BENCH_LOGS}/images-{{number}}.log",
    wildcard_constraints:
        number=r"\d+",
    conda:
        "../../envs/optstate.yaml"
    message:
        "Get {wildcards.number} photographs to measure with"
    shell:
        "python -m optstate.bench.images --archive={input.archive:q} --number {wildcards.number} "
        "--output {output} --log {log}"


rule bench_arrays:
    input:
        images=TRAINED_ON,
        sources=sources("data/prepare.py", "data/manifest.py"),
    output:
        f"{BENCH_RESULTS}/{{size}}px/arrays/dataset.json",
    log:
        f"{BENCH_LOGS}/{{size}}px-arrays.log",
    conda:
        "../../envs/optstate.yaml"
    threads: ALL_CORES
    params:
        folder=subpath(output[0], parent=True),
    message:
        "Decode them to {wildcards.size} px"
    shell:
        "python -m optstate.data.prepare --folder {input.images} --image-size {wildcards.size} "
        "--workers {threads} --output {params.folder} --log {log}"


rule bench_training:
    input:
        lambda wildcards: sources(
            "training",
            "bench/measure.py",
            "bench/step.py",
            "bench/data_path.py",
            f"bench/{wildcards.part}.py",
        ),
    output:
        f"{BENCH_RESULTS}/{{size}}px/{{part}}.csv",
    log:
        f"{BENCH_LOGS}/{{size}}px-{{part}}.log",
    wildcard_constraints:
        part="loop|step|sharing",
    conda:
        "../../envs/optstate.yaml"
    threads: ALL_CORES
    params:
        settings=settings_at_size,
        packages=TRAINING_PACKAGES,
    message:
        "Measure {wildcards.part} at {wildcards.size} px"
    shell:
        "python -m optstate.bench.{wildcards.part} --settings {params.settings:q} "
        "--output {output} --log {log}"


rule bench_data_path:
    input:
        images=TRAINED_ON,
        arrays=f"{BENCH_RESULTS}/{{size}}px/arrays/dataset.json",
        sources=sources("training", "bench/data_path.py", "bench/measure.py"),
    output:
        f"{BENCH_RESULTS}/{{size}}px/data_path.csv",
    log:
        f"{BENCH_LOGS}/{{size}}px-data_path.log",
    conda:
        "../../envs/optstate.yaml"
    threads: ALL_CORES
    params:
        settings=settings_at_size,
        arrays=subpath(input.arrays, parent=True),
        packages=TRAINING_PACKAGES,
    message:
        "Measure the data path at {wildcards.size} px"
    shell:
        "python -m optstate.bench.data_path --settings {params.settings:q} --images {input.images} "
        "--arrays {params.arrays} --output {output} --log {log}"


rule bench_prepare:
    input:
        images=f"{BENCH_RESULTS}/images-{BENCH['num_images']['prepare']}",
        sources=sources(
            "data/prepare.py", "data/manifest.py", "bench/prepare.py", "bench/measure.py"
        ),
    output:
        f"{BENCH_RESULTS}/{{size}}px/prepare.csv",
    log:
        f"{BENCH_LOGS}/{{size}}px-prepare.log",
    conda:
        "../../envs/optstate.yaml"
    threads: ALL_CORES
    params:
        packages=locked("numpy", "pillow"),
    message:
        "Measure the decoding to {wildcards.size} px"
    shell:
        "python -m optstate.bench.prepare --images {input.images} --image-size {wildcards.size} "
        "--cores {threads} --output {output} --log {log}"


rule bench_peers:
    input:
        images=TRAINED_ON,
        arrays=f"{BENCH_RESULTS}/{{size}}px/arrays/dataset.json",
        sources=sources("training", "bench/peers.py", "bench/peer", "bench/measure.py"),
    output:
        f"{BENCH_RESULTS}/{{size}}px/peers.csv",
    log:
        f"{BENCH_LOGS}/{{size}}px-peers.log",
    conda:
        "../../envs/optstate.yaml"
    threads: ALL_CORES
    params:
        settings=settings_at_size,
        arrays=subpath(input.arrays, parent=True),
        environments=f"{BENCH_RESULTS}/environments",
        packages=TRAINING_PACKAGES,
    message:
        "Measure an epoch against the peers at {wildcards.size} px"
    shell:
        "python -m optstate.bench.peers --settings {params.settings:q} --images {input.images} "
        "--arrays {params.arrays} --environments {params.environments} --output {output} --log {log}"


rule bench_orchestration:
    input:
        sources("bench/orchestration.py", "bench/measure.py"),
    output:
        f"{BENCH_RESULTS}/orchestration.csv",
    log:
        f"{BENCH_LOGS}/orchestration.log",
    conda:
        "../../envs/optstate.yaml"
    threads: ALL_CORES
    params:
        jobs=BENCH["jobs"],
        packages=locked("snakemake"),
    message:
        "Measure what the pipeline adds to its jobs, the demo and dry runs"
    shell:
        "python -m optstate.bench.orchestration --max-jobs {params.jobs} "
        "--output {output} --log {log}"
