# The image of every cluster role: coordinator, server and worker run the same installation with another command.
#
#   docker build --tag distopt .
#   docker run --rm distopt --help

FROM python:3.11-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/distopt
ENV PATH=/opt/distopt/bin:$PATH
WORKDIR /src
# Dependencies change seldom and are large: they are a layer of their own, so that an edit rebuilds only the last one.
COPY pyproject.toml ./
RUN python -c "import tomllib; \
project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
print(*project['dependencies'], *project['optional-dependencies']['digits'], sep='\n')" > /tmp/requirements.txt \
    && pip install --quiet --requirement /tmp/requirements.txt
COPY README.md LICENSE ./
COPY distopt distopt
COPY workers workers
RUN pip install --quiet --no-deps . && pip check

FROM python:3.11-slim-bookworm
# One BLAS thread per process: processes are what scales here, and the thread count is part of the numerics fingerprint.
ENV PATH=/opt/distopt/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    OMP_NUM_THREADS=1 \
    OPENBLAS_NUM_THREADS=1
RUN useradd --uid 10001 --create-home --shell /usr/sbin/nologin distopt \
    && install --directory --owner distopt --group distopt /job/runs
COPY --from=build /opt/distopt /opt/distopt
COPY configs /job/configs
USER distopt
WORKDIR /job
ENTRYPOINT ["distopt"]
CMD ["--help"]
