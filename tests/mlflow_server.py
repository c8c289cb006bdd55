"""A real MLflow server, one process on loopback (scripts/mlflow.sh makes its environment)."""

import os
import subprocess
import uuid
from pathlib import Path
from typing import Any

import httpx
import onnx
import pytest

from onnx_files import external, linear
from ports import free_port
from waiting import eventually

ROOT = Path(__file__).parents[1]
MLMODEL = """artifact_path: model
flavors:
{flavours}
mlflow_version: 3.17.2
run_id: {run}
signature:
  inputs: '{inputs}'
  outputs: '{outputs}'
"""
ONNX = "  onnx:\n    data: model.onnx\n    onnx_version: 1.19.0"
PYTHON_ONLY = "  python_function:\n    loader_module: mlflow.sklearn\n  sklearn:\n    code: null"
Y = '[{"name": "y", "type": "tensor", "tensor-spec": {"dtype": "float32", "shape": [-1, 3]}}]'
X = '[{"name": "x", "type": "tensor", "tensor-spec": {"dtype": "float32", "shape": [-1, 3]}}]'


class MlflowServer:
    """The server, and what a data scientist does with it by its REST API."""

    def __init__(self, folder: Path) -> None:
        made = subprocess.run(
            [ROOT / "scripts/mlflow.sh"], capture_output=True, text=True, timeout=600, check=False
        )
        if made.returncode:
            pytest.skip(f"MLflow could not be installed: {made.stderr.strip()[-200:]}")
        self.folder, self.port = folder, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        store = f"sqlite:///{folder}/m.db"
        environment = os.environ | {
            "_MLFLOW_SERVER_FILE_STORE": store,
            "_MLFLOW_SERVER_REGISTRY_STORE": store,
            "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
            "_MLFLOW_SERVER_ARTIFACT_DESTINATION": f"{folder}/artifacts",
            "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
        python = Path(made.stdout.strip()) / "bin/python"
        arguments = ["--host", "127.0.0.1", "--port", str(self.port), "--log-level", "warning"]
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [python, "-m", "uvicorn", *arguments, "mlflow.server.fastapi_app:app"],
                cwd=folder, env=environment, stdout=log, stderr=log,
            )  # fmt: skip
        self.http = httpx.Client(base_url=self.url, timeout=30, trust_env=False)
        eventually(self._is_up, "MLflow answers", 180)

    def stop(self) -> None:
        self.http.close()
        self.process.kill()
        self.process.wait()

    def _is_up(self) -> bool:
        assert self.process.poll() is None, (self.folder / "log").read_text()[-2_000:]
        try:
            return self.http.get("/version").status_code == 200
        except httpx.TransportError:
            return False

    def post(self, path: str, **body: Any) -> Any:
        answer = self.http.post(f"/api/2.0/mlflow/{path}", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def get(self, path: str, **query: Any) -> Any:
        answer = self.http.get(f"/api/2.0/mlflow/{path}", params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def register(
        self,
        name: str,
        files: dict[str, bytes] | None = None,
        *,
        inputs: str = X,
        flavours: str = ONNX,
        source: str = "",
    ) -> str:
        """Log a run with a model, and register it as the next version of `name`."""
        experiment = self.post("experiments/create", name=uuid.uuid4().hex)["experiment_id"]
        tags = {"mlflow.source.git.commit": "8c1f2ab9", "mlflow.source.name": "train.py"}
        run = self.post(
            "runs/create", experiment_id=experiment, run_name="press", start_time=1,
            tags=[{"key": key, "value": value} for key, value in tags.items()],
        )["run"]["info"]  # fmt: skip
        where = run["artifact_uri"].partition(":/")[2].strip("/")
        described = MLMODEL.format(flavours=flavours, run=run["run_id"], inputs=inputs, outputs=Y)
        for path, data in ({"model.onnx": linear()} if files is None else files).items():
            self._put(f"{where}/model/{path}", data)
        self._put(f"{where}/model/MLmodel", described.encode())
        known = self.http.post("/api/2.0/mlflow/registered-models/create", json={"name": name})
        assert known.status_code in (200, 400), known.text
        made = self.post(
            "model-versions/create", name=name, source=source or f"{run['artifact_uri']}/model",
            run_id=run["run_id"], tags=[{"key": "line", "value": "7"}],
        )  # fmt: skip
        return str(made["model_version"]["version"])

    def point(self, name: str, alias: str, version: str) -> None:
        """Move an alias."""
        self.post("registered-models/alias", name=name, alias=alias, version=version)

    def _put(self, path: str, data: bytes) -> None:
        answer = self.http.put(f"/api/2.0/mlflow-artifacts/artifacts/{path}", content=data)
        assert answer.status_code == 200, answer.text


def in_two_files() -> dict[str, bytes]:
    """A model that keeps its weights in a file beside it."""
    model = onnx.load_model_from_string(linear())
    weights = model.graph.initializer[0]
    data = onnx.numpy_helper.to_array(weights).tobytes()
    weights.ClearField("float_data")
    weights.ClearField("raw_data")
    external(weights, location="weights.bin", offset="0", length=str(len(data)))
    return {"model.onnx": bytes(model.SerializeToString()), "weights.bin": data}
