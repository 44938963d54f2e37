"""prefect.yaml and the work pools' templates, as files and as a real Prefect server takes them."""

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import configs

ROOT = Path(__file__).resolve().parent.parent
PREFECT = yaml.safe_load((ROOT / "prefect.yaml").read_text())
DEPLOYMENTS = {deployment["name"]: deployment for deployment in PREFECT["deployments"]}
DEPLOY = """
import json, os, sys, urllib.request
from flows import server, services
home = server.state_home()
server.configure(home)
with server.prefect_api(home):
    code = services.deploy(None, home) or services.deploy(None, home)
    def ask(what):
        url = f"{os.environ['PREFECT_API_URL']}/{what}/filter"
        request = urllib.request.Request(url, data=b"{}", headers={"Content-Type": "application/json"})
        return json.load(urllib.request.urlopen(request))
    print("\\nANSWER" + json.dumps([code, ask("deployments"), ask("work_pools")]))
"""


def test_the_deployments_that_the_readme_names():
    assert set(DEPLOYMENTS) == {"nightly-research", "local"}


def test_nothing_in_it_is_true_of_one_machine_only():
    assert not re.search(r"""(^|[\s"'])(/|~|[A-Za-z]:\\)""", (ROOT / "prefect.yaml").read_text())


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_entrypoint_is_the_flow_and_takes_the_parameters(name):
    from flows import nightly_research

    assert DEPLOYMENTS[name]["entrypoint"] == "flows.nightly_research:nightly_research"
    assert nightly_research.nightly_research.name == "nightly-research"
    assert set(DEPLOYMENTS[name]["parameters"]) <= set(inspect.signature(nightly_research.nightly_research.fn).parameters)


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_profile_exists(name):
    assert DEPLOYMENTS[name]["parameters"]["profile"] in configs.names()


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_every_pool_has_its_template(name):
    assert (ROOT / "deployments" / f"pool-{DEPLOYMENTS[name]['work_pool']['name']}.json").is_file()


@pytest.mark.parametrize("path", sorted((ROOT / "deployments").glob("pool-*.json")), ids=lambda path: path.stem)
def test_template_configures_only_what_it_declares(path):
    template = json.loads(path.read_text())
    used = {found for value in template["job_configuration"].values() for found in re.findall(r"\{\{ (\w+) \}\}", value)}
    assert used == set(template["variables"]["properties"])


@pytest.fixture(scope="module")
def deployed(tmp_path_factory) -> dict[str, Any]:
    """What a server has after `./run deploy` was run twice."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "MLFLOW_", "NIGHTLY_"))}
    environment = {**kept, "NIGHTLY_HOME": str(tmp_path_factory.mktemp("home"))}
    argv = [sys.executable, "-c", DEPLOY]
    done = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    code, deployments, pools = json.loads(done.stdout.rpartition("ANSWER")[2])
    assert code == 0, done.stdout + done.stderr
    return {"deployments": {each["name"]: each for each in deployments}, "pools": {each["name"]: each for each in pools}}


@pytest.mark.slow
def test_deployed_pools_are_of_type_process(deployed):
    assert {name: pool["type"] for name, pool in deployed["pools"].items()} == {"local": "process", "gpu": "process"}


@pytest.mark.slow
def test_a_second_night_at_once_is_cancelled(deployed):
    for deployment in deployed["deployments"].values():
        assert deployment["global_concurrency_limit"]["limit"] == 1
        assert deployment["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"


@pytest.mark.slow
def test_the_nightly_schedule_is_there_and_inactive(deployed):
    schedules = deployed["deployments"]["nightly-research"]["schedules"]
    assert [(each["schedule"]["cron"], each["active"]) for each in schedules] == [("0 22 * * *", False)]
    assert deployed["deployments"]["local"]["schedules"] == []


@pytest.mark.slow
def test_the_checkout_is_found_where_the_worker_runs(deployed):
    for deployment in deployed["deployments"].values():
        assert "NIGHTLY_CHECKOUT" in json.dumps(deployment["pull_steps"])


@pytest.mark.slow
def test_a_night_outlives_its_worker(deployed):
    for deployment in deployed["deployments"].values():
        assert deployment["job_variables"]["stream_output"] is False
