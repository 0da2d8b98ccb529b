# From a clone, build the image and run the demo (or another command, given at the end):
#   docker build -t optstate .
#   docker run --rm -v "$PWD/results:/optstate/results" -v "$PWD/logs:/optstate/logs" \
#     -v "$PWD/.snakemake:/optstate/.snakemake" optstate
# The three folders keep the results, the logs, and Snakemake's record of what results were made from.
# Their new files belong to root. An NVIDIA GPU should need only `--gpus all` after `run`; this is untested.
FROM debian:trixie-slim
RUN apt-get update && apt-get install -y --no-install-recommends git make python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /optstate
# The packages have a layer of their own, which is made again only if these two files change.
COPY Makefile .
COPY envs/requirements.lock envs/
RUN make install && rm -rf /root/.cache
COPY . .
# The second copy of the lock file may look newer than the packages.
RUN touch .venv/installed
VOLUME /optstate/results /optstate/logs /optstate/.snakemake
CMD ["make", "demo"]
