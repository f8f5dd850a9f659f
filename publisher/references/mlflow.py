"""Models of an MLflow tracking server or store, named as MLflow names them.

    mlflow:models:/fraud@champion   mlflow:models:/fraud/3   mlflow:models:/fraud/latest   mlflow:models:/m-<model id>
    mlflow:runs:/<run id>/<name or path of the model>        mlflow:runs:/<run id>/<path>.onnx

- The server is MLflow's own choice: `MLFLOW_TRACKING_URI`, `MLFLOW_REGISTRY_URI`, credentials as it reads them.
- Read are `MLmodel`, the graph of its `onnx` flavour and that graph's external data. With `--trust-pickle`, and where
  there is no `onnx` flavour, the pickle of its `sklearn` flavour: unpickling runs code of whoever logged it.
- Metrics of the run that made the model are the version's metrics, unless the publisher states them anew.
- The manifest's frameworks get `mlflow` -> `models:/fraud/3` and `mlflow-run` -> the run's id.

The MLmodel file: https://mlflow.org/docs/latest/ml/model/#mlmodel-file
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from modelcast.blobs import check_path
from modelcast.errors import MissingExtraError, ModelcastError, NotFoundError, SourceError, StructureError

from . import graph_files
from .reference import MLFLOW, Fetched

if TYPE_CHECKING:
    import requests

MLMODEL: Final = "MLmodel"
# Real ones have a few kilobytes; signatures of thousands of columns some hundreds.
MAX_MLMODEL_BYTES: Final = 4 << 20
# A run may log a metric per epoch and layer; a manifest is one record.
MAX_METRICS: Final = 100
# MLflow tries seven times for minutes, as training jobs want; who waits at a terminal mistyped the address.
_RETRIES: Final = "2"

_GRAPH_SUFFIX = ".onnx"
_EXTRA_HINT = "Install it: pip install 'modelcast[mlflow]'."
_LOG_HINT = "Log it with mlflow.onnx.log_model, or load it in Python and publish the object"
_FORMS = "Write mlflow:models:/NAME@ALIAS, mlflow:models:/NAME/VERSION or mlflow:runs:/RUN_ID/PATH."
_NOT_THERE = frozenset({"RESOURCE_DOES_NOT_EXIST", "NOT_FOUND"})
_DENIED = frozenset({"PERMISSION_DENIED", "UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED"})


@dataclass(frozen=True)
class Logged:
    """A model as MLflow finds it: `uri` names it for ever, its files lie under `files`, `run` made it."""

    uri: str
    files: str
    run: str | None


def fetch(place: str, folder: Path, *, trust_pickle: bool, tell: Callable[[str], None]) -> Fetched:
    """Fetches a model's graph, or pickle; see `reference.fetch`."""
    with _foreign(place):
        logged = _resolve(place)
        if logged.uri != place:
            tell(f"{place} is {logged.uri}")
        if logged.files.endswith(_GRAPH_SUFFIX):
            uri, _, path = logged.files.rpartition("/")
        else:
            description = folder / MLMODEL
            _download_description(logged, description, place)
            uri, path = logged.files, choose(description, place, trust_pickle=trust_pickle)

        def download(name: str, target: Path) -> None:
            _download(f"{uri}/{name}", target)

        files = folder / "files"
        files.mkdir()
        if path.endswith(_GRAPH_SUFFIX):
            found = graph_files.fetch(path, place, files, download)
        else:
            found = files / path.rpartition("/")[2]
            download(path, found)
        origin = {MLFLOW: logged.uri} | ({f"{MLFLOW}-run": logged.run} if logged.run else {})
        return Fetched(found, origin, _metrics(logged.run, tell))


def local(folder: Path, *, trust_pickle: bool) -> Path:
    """The file to publish of a model that MLflow wrote into a folder here; raises as `choose`."""
    return folder / choose(folder / MLMODEL, str(folder), trust_pickle=trust_pickle)


def choose(description: Path, what: str, *, trust_pickle: bool) -> str:
    """The file to publish of a model, as its MLmodel file names it, relative to that file's folder.

    Args:
        description: The MLmodel file.
        what: What names the model, for messages.
        trust_pickle: Whether it may be the sklearn flavour's pickle.

    Raises:
        SourceError: No flavour can be published; the message names those it has and the way out.
    """
    flavours = _flavours(description, what)
    if "onnx" in flavours:
        graph = _data(flavours["onnx"].get("data"), what)
        if not graph.endswith(_GRAPH_SUFFIX):  # what is not read as a graph might be unpickled
            raise SourceError(f"{MLMODEL} of {what} names {graph!r} as its graph", hint=_LOG_HINT + ".")
        return graph
    named = ", ".join(sorted(flavours)) or "none"
    flavour = flavours.get("sklearn")
    if flavour is None:
        load = next((name for name in sorted(flavours) if name != "python_function"), None)
        via = f": mlflow.{load}.load_model({what!r})." if load else "."
        raise SourceError(f"{what} has no onnx flavour; it has {named}", hint=_LOG_HINT + via)
    if flavour.get("serialization_format") == "skops":
        raise SourceError(
            f"{what} has no onnx flavour; it has {named}, the model in skops' format",
            hint=f"{_LOG_HINT}: mlflow.sklearn.load_model({what!r}).",
        )
    if not trust_pickle:
        raise SourceError(
            f"{what} has no onnx flavour; it has {named}, the model as a pickle",
            hint="If you trust who logged it, add --trust-pickle (trust_pickle=True): unpickling runs their code. "
            "Or log it with mlflow.onnx.log_model.",
        )
    return _data(flavour.get("pickled_model"), what)


def _flavours(description: Path, what: str) -> dict[str, dict[str, Any]]:
    try:
        import yaml  # comes with mlflow
    except ImportError as error:
        raise MissingExtraError(f"reading {what} takes mlflow, which is not installed", hint=_EXTRA_HINT) from error
    hint = f"{MLMODEL} is what MLflow writes beside a model it logs."
    if description.stat().st_size > MAX_MLMODEL_BYTES:
        raise SourceError(f"{MLMODEL} of {what} has more than {MAX_MLMODEL_BYTES} bytes", hint=hint)
    try:
        content = yaml.safe_load(description.read_text(encoding="utf-8"))
        found = content["flavors"]
        return {str(name): dict(flavour) for name, flavour in found.items()}
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise SourceError(f"{MLMODEL} of {what} names no flavours", hint=hint) from error


def _data(path: object, what: str) -> str:
    try:
        if isinstance(path, str):
            return check_path(path)
    except StructureError as error:
        raise StructureError(f"{MLMODEL} of {what} names {path!r}, which is outside the model's folder") from error
    raise SourceError(f"{MLMODEL} of {what} does not name the model's file", hint="Log the model again.")


def _resolve(place: str) -> Logged:
    scheme, _, rest = place.partition(":/")
    parts = rest.strip("/").split("/")
    if scheme == "runs" and len(parts) > 1 and all(parts):
        _client().get_run(parts[0])
        uri = f"runs:/{'/'.join(parts)}"
        return Logged(uri, uri, parts[0])
    if scheme == "runs" and parts[0]:
        raise SourceError(f"{place} names a run and no model in it", hint=_within(parts[0]))
    if scheme != "models" or not all(parts) or len(parts) > 2:
        raise SourceError(f"{place!r} is not a reference to a model of MLflow", hint=_FORMS)
    if len(parts) == 2:
        return _version(parts[0], _latest(parts[0]) if parts[1] == "latest" else parts[1])
    name, at, alias = parts[0].rpartition("@")
    if at:
        return _version(name, _aliased(name, alias))
    if not parts[0].startswith("m-"):
        raise SourceError(f"{place!r} names no version of the model", hint=_FORMS)
    found = _client().get_logged_model(parts[0])
    return Logged(f"models:/{parts[0]}", found.artifact_location, found.source_run_id or None)


def _version(name: str, version: str) -> Logged:
    if not (version.isascii() and version.isdecimal()):
        raise SourceError(
            f"{version!r} is no version of model {name!r}", hint=f"MLflow's stages are gone, use an alias. {_FORMS}"
        )
    found = _client().get_model_version(name, version)
    uri = f"models:/{name}/{found.version}"
    return Logged(uri, uri, found.run_id or None)


def _aliased(name: str, alias: str) -> str:
    client = _client()
    try:
        return str(client.get_model_version_by_alias(name, alias).version)
    except Exception as error:  # stores differ in what they raise; what is there tells
        aliases = client.get_registered_model(name).aliases
        if alias in aliases:
            raise
        named = ", ".join(f"{known} (version {version})" for known, version in sorted(aliases.items())) or "none"
        raise NotFoundError(
            f"model {name!r} of MLflow has no alias {alias!r}; it has {named}",
            hint=f"Set it in MLflow, or name a version: mlflow:models:/{name}/1.",
        ) from error


def _latest(name: str) -> str:
    client = _client()
    client.get_registered_model(name)
    versions = [int(found.version) for found in client.search_model_versions(f"name = '{name}'")]
    if not versions:
        raise NotFoundError(f"model {name!r} of MLflow has no version yet", hint="Register one, or name a run.")
    return str(max(versions))


def _within(run: str) -> str:
    """What a run has, for who did not name a model in it, or none that is there."""
    import mlflow.artifacts

    client = _client()
    found = client.get_run(run)
    names = {entry.path for entry in mlflow.artifacts.list_artifacts(run_id=run)}
    outputs = getattr(found, "outputs", None)  # models lie apart from runs since MLflow 3
    for output in getattr(outputs, "model_outputs", None) or ():
        names.add(client.get_logged_model(output.model_id).name)
    if not names:
        return "The run has logged no model and no artifact."
    return f"Name one of what it has: {', '.join(f'mlflow:runs:/{run}/{name}' for name in sorted(names))}."


def _download_description(logged: Logged, target: Path, what: str) -> None:
    try:
        _download(f"{logged.files}/{MLMODEL}", target)
    except NotFoundError as error:
        hint = _within(logged.run) if logged.uri.startswith("runs:/") and logged.run else "Log the model again."
        raise NotFoundError(f"{what} has no model: there is no {MLMODEL} file", hint=hint) from error


def _download(uri: str, target: Path) -> None:
    import mlflow.artifacts
    import mlflow.exceptions
    import requests

    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        try:
            got = mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=scratch)
        except (mlflow.exceptions.MlflowException, OSError) as error:  # an HTTP status is an OSError of requests
            if _unreachable(error) or (isinstance(error, requests.HTTPError) and _status(error) != 404):
                raise
            raise NotFoundError(f"MLflow has no file {uri}", hint="Log the model again: it is not whole.") from error
        if not Path(got).is_file():
            raise NotFoundError(f"MLflow has no file {uri}: it is a folder", hint="Name the folder of the model.")
        shutil.move(got, target)


def _metrics(run: str | None, tell: Callable[[str], None]) -> Mapping[str, float]:
    if run is None:
        return {}
    import mlflow.exceptions

    try:
        logged = _client().get_run(run).data.metrics
    except mlflow.exceptions.MlflowException:
        tell(f"warning: run {run} of the model is gone, and its metrics with it")
        return {}
    own = {name: float(value) for name, value in logged.items() if not name.startswith("system/")}
    kept = {name: own[name] for name in sorted(own) if math.isfinite(own[name])}
    if len(kept) > MAX_METRICS:
        tell(f"warning: the first {MAX_METRICS} of {len(kept)} metrics of run {run} are kept")
    return dict(list(kept.items())[:MAX_METRICS])


def _client() -> Any:
    from mlflow import MlflowClient

    return MlflowClient()


@contextmanager
def _foreign(place: str) -> Iterator[None]:
    """MLflow without its bars, warnings and minutes of patience; what it raises as an error of ours."""
    quiet = {"MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": _RETRIES}
    added = {name: value for name, value in quiet.items() if name not in os.environ}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                import mlflow  # noqa: F401 - said once, here, that it is not installed
            except ImportError as error:
                raise MissingExtraError(
                    f"reading mlflow:{place} takes mlflow, which is not installed", hint=_EXTRA_HINT
                ) from error
            os.environ.update(added)
            yield
    except ModelcastError:
        raise
    except ImportError as error:  # a store's own package: sqlalchemy, boto3, …
        raise MissingExtraError(
            f"reading {place} from MLflow takes {error.name}, which is not installed",
            hint=f"Install it: pip install {error.name} (or pip install mlflow).",
        ) from error
    except Exception as error:  # MLflow's stores raise their own and those of their transports
        raise _told(error, place) from error
    finally:
        for name in added:
            with suppress(KeyError):
                del os.environ[name]


def _told(error: Exception, place: str) -> ModelcastError:
    import mlflow
    from mlflow.tracking.registry import UnsupportedModelRegistryStoreURIException

    uris = {mlflow.get_tracking_uri(), mlflow.get_registry_uri()}
    servers = " and ".join(sorted(_without_secrets(uri) for uri in uris))
    line = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
    code = str(getattr(error, "error_code", ""))
    line = line.removeprefix(f"{code}: ")
    if _unreachable(error):
        return SourceError(
            f"MLflow at {servers} can't be reached", hint="Start it, or set MLFLOW_TRACKING_URI to where it is."
        )
    if isinstance(error, UnsupportedModelRegistryStoreURIException):
        return MissingExtraError(
            f"MLflow can't read {servers}: mlflow-skinny talks to servers, not to databases",
            hint="Install the whole of it: pip install mlflow. Or set MLFLOW_TRACKING_URI to a server.",
        )
    if code in _NOT_THERE:
        return NotFoundError(
            f"MLflow at {servers} has no {place}: {line}", hint="Check the name, and MLFLOW_TRACKING_URI."
        )
    if code in _DENIED:
        return SourceError(
            f"MLflow at {servers} refuses {place}: {line}",
            hint="Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN.",
        )
    return SourceError(
        f"MLflow at {servers} can't give {place}: {line}", hint="Check MLFLOW_TRACKING_URI and the server's log."
    )


def _unreachable(error: BaseException | None) -> bool:
    """Whether a connection failed: MLflow wraps what its transport raised, sometimes as a text only."""
    import requests

    seen = 0
    while error is not None and seen < 10:
        if isinstance(error, (requests.ConnectionError, requests.Timeout, ConnectionError, TimeoutError)):
            return True
        error, seen = error.__cause__ or error.__context__, seen + 1
    return False


def _status(error: requests.HTTPError) -> int:
    return 0 if error.response is None else error.response.status_code


def _without_secrets(uri: str) -> str:
    parts = urlsplit(uri)
    if "@" not in parts.netloc:
        return uri
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
