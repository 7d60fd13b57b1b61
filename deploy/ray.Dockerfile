# The image of deploy/kuberay-rayjob.yaml: docker build -f deploy/ray.Dockerfile -t REGISTRY/guda:ray .
FROM rayproject/ray:2.60.0-py311-gpu
COPY --chown=ray . /home/ray/guda-core
RUN pip install --no-cache-dir '/home/ray/guda-core[ray]'
