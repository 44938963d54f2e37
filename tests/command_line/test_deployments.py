"""prefect.yaml and the work pool templates, as files and on a real Prefect server."""

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

ROOT = Path(__file__).resolve().parents[2]
PREFECT = yaml.safe_load((ROOT / "prefect.yaml").read_text())
DEPLOYMENTS = {deployment["name"]: deployment for deployment in PREFECT["deployments"]}
DEPLOY = """
import json, os, sys, urllib.request
from flows import state_home
from flows.command_line import server, services
home = state_home.locate()
state_home.configure(home)
with server.prefect_api(home):
    def ask(what, method="POST", **body):
        url = f"{os.environ['PREFECT_API_URL']}/{what}"
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(url, json.dumps(body).encode(), headers, method=method)
        return json.loads(urllib.request.urlopen(request).read() or "null")
    code, first = services.deploy(None, home), ask("deployments/filter")
    for deployment in first:
        for schedule in deployment["schedules"]:  # as `prefect deployment schedule resume` does
            ask(f"deployments/{deployment['id']}/schedules/{schedule['id']}", "PATCH", active=True)
    code = code or services.deploy(None, home)
    found = [code, first, ask("deployments/filter"), ask("work_pools/filter")]
    print("\\nANSWER" + json.dumps(found))
"""


def test_the_deployments_that_the_docs_name():
    assert set(DEPLOYMENTS) == {"nightly-research", "local"}


def test_no_path_of_one_machine():
    assert not re.search(r"""(^|[\s"'])(/|~|[A-Za-z]:\\)""", (ROOT / "prefect.yaml").read_text())


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_entrypoint_is_the_flow_and_takes_the_parameters(name):
    from flows import nightly_research

    assert DEPLOYMENTS[name]["entrypoint"] == "flows.nightly_research:nightly_research"
    assert nightly_research.nightly_research.name == "nightly-research"
    assert set(DEPLOYMENTS[name]["parameters"]) <= set(
        inspect.signature(nightly_research.nightly_research.fn).parameters
    )


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_profile_exists(name):
    assert DEPLOYMENTS[name]["parameters"]["profile"] in configs.names()


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_every_pool_has_its_template(name):
    assert (ROOT / "deployments" / f"pool-{DEPLOYMENTS[name]['work_pool']['name']}.json").is_file()


@pytest.mark.parametrize(
    "path", sorted((ROOT / "deployments").glob("pool-*.json")), ids=lambda path: path.stem
)
def test_template_configures_only_what_it_declares(path):
    template = json.loads(path.read_text())
    used = {
        found
        for value in template["job_configuration"].values()
        for found in re.findall(r"\{\{ (\w+) \}\}", value)
    }
    assert used == set(template["variables"]["properties"])


@pytest.fixture(scope="module")
def deployed(tmp_path_factory) -> dict[str, Any]:
    """What a server has after `./run deploy`, and after a second one with all schedules on."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("PREFECT_", "MLFLOW_", "NIGHTLY_"))
    }
    environment = {**kept, "NIGHTLY_HOME": str(tmp_path_factory.mktemp("home"))}
    argv = [sys.executable, "-c", DEPLOY]
    done = subprocess.run(
        argv, cwd=ROOT, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr
    code, *found = json.loads(done.stdout.rpartition("ANSWER")[2])
    assert code == 0, done.stdout + done.stderr
    names = ("first", "deployments", "pools")
    return {
        "said": done.stdout,
        **{
            what: {each["name"]: each for each in each_of}
            for what, each_of in zip(names, found, strict=True)
        },
    }


@pytest.mark.slow
def test_deployed_pools_are_of_type_process(deployed):
    assert {name: pool["type"] for name, pool in deployed["pools"].items()} == {
        "local": "process",
        "gpu": "process",
    }


@pytest.mark.slow
def test_a_second_night_at_once_is_cancelled(deployed):
    for deployment in deployed["deployments"].values():
        assert deployment["global_concurrency_limit"]["limit"] == 1
        assert deployment["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"


@pytest.mark.slow
def test_the_nightly_schedule_is_there_and_inactive(deployed):
    schedules = deployed["first"]["nightly-research"]["schedules"]
    assert [(each["schedule"]["cron"], each["active"]) for each in schedules] == [
        ("0 22 * * *", False)
    ]
    assert deployed["first"]["local"]["schedules"] == []


@pytest.mark.slow
def test_a_schedule_that_is_on_stays_on_at_the_next_deploy(deployed):
    schedules = deployed["deployments"]["nightly-research"]["schedules"]
    assert [(each["schedule"]["cron"], each["active"]) for each in schedules] == [
        ("0 22 * * *", True)
    ]
    assert "schedule of nightly-research (0 22 * * *) stays on" in deployed["said"]


@pytest.mark.slow
def test_a_deploy_names_our_own_commands_and_none_of_prefects(deployed):
    first, _ = deployed["said"].split("schedule of nightly-research")
    assert first.splitlines() == [
        "deployment nightly-research: `./run worker gpu` runs its nights",
        "deployment local: `./run worker local` runs its nights",
        "automations: nightly-research: mark crashed",
    ]
    assert "prefect worker start" not in deployed["said"]


@pytest.mark.slow
def test_the_checkout_is_found_where_the_worker_runs(deployed):
    for deployment in deployed["deployments"].values():
        assert "NIGHTLY_CHECKOUT" in json.dumps(deployment["pull_steps"])


@pytest.mark.slow
def test_a_night_outlives_its_worker(deployed):
    for deployment in deployed["deployments"].values():
        assert deployment["job_variables"]["stream_output"] is False
