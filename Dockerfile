# One image for every role: `run`, `db upgrade`, `streams` … Built from this folder, nothing else is copied in.
FROM python:3.11-slim AS build
# With plugins, also theirs: docker build --build-arg EXTRAS=postgres,telemetry,speed,sealed,profiles .
ARG EXTRAS=postgres,telemetry,speed,sealed
WORKDIR /build
RUN python -m venv /opt/nebengjek
COPY pyproject.toml constraints.txt README.md ./
COPY nebengjek nebengjek
COPY plugins plugins
RUN /opt/nebengjek/bin/pip install --no-cache-dir --disable-pip-version-check \
        -c constraints.txt ".[${EXTRAS}]" \
    && /opt/nebengjek/bin/pip uninstall --yes --quiet pip setuptools

FROM python:3.11-slim
RUN useradd --system --uid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin nebengjek \
    && install -d -o nebengjek -g nebengjek /data
COPY --from=build /opt/nebengjek /opt/nebengjek
COPY settings /app/settings
ENV PATH=/opt/nebengjek/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    NEBENGJEK__WEB__HOST=0.0.0.0 \
    NEBENGJEK__WEB__PORT=8000 \
    DATABASE_URL=sqlite:////data/nebengjek.sqlite3
WORKDIR /data
VOLUME /data
USER 10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ['NEBENGJEK__WEB__PORT'] + '/health/ready', timeout=4)"]
ENTRYPOINT ["nebengjek"]
CMD ["run"]
