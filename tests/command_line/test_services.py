"""Commands around deployments, on a real Prefect server that has the project's own."""

import json

import pytest

from flows.command_line import services
from tests.checkouts import Checkout
from tests.faults.prefect_server import PrefectServer

ASK = """
import json, sys
from prefect import get_client
with get_client(sync_client=True) as client:
    by_name = {each.name: each for each in client.read_deployments()}
    schedules = [each.active for each in by_name["nightly-research"].schedules]
    refused = {}
    for text in sys.argv[1:]:
        try:
            client.create_flow_run_from_deployment(by_name["local"].id, parameters=json.loads(text))
        except Exception as error:
            refused[text] = str(error)
    runs = [[run.deployment_id == by_name["local"].id] for run in client.read_flow_runs()]
    pools = [pool.name for pool in client.read_work_pools()]
    print(json.dumps([schedules, refused, len(runs), pools]))
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory, warm, deployed_prefect):
    server = PrefectServer(tmp_path_factory.mktemp("prefect"), warm, deployed_prefect)
    server.start()
    yield Checkout(tmp_path_factory.mktemp("checkout"), warm=warm, api=server.api)
    server.stop()


def ask(checkout, *parameters):
    """Whether the schedules are on, what was refused, how many flow runs there are, which pools."""
    done = checkout.warm.run(
        ["-c", ASK, *parameters], cwd=checkout.folder, env=checkout.environment()
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_schedule_is_switched_on_and_off_by_the_deployments_name(checkout):
    for state, is_on in (("on", True), ("on", True), ("off", False)):
        done = checkout.run("schedule", state)
        assert (done.returncode, done.stdout) == (
            0,
            f"schedule of nightly-research (0 22 * * *) is {state}\n",
        ), done.stderr
        assert ask(checkout)[0] == [is_on]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["schedule", "on", "nightly"],
            "no deployment 'nightly' on this server; there are: local",
        ),
        (["schedule", "on", "local"], "deployment local has no schedule: add one to prefect.yaml"),
        (["schedule", "maybe"], "argument ON|OFF: invalid choice: 'maybe'"),
        (
            ["worker", "nopool"],
            "no work pool 'nopool' on this server; there are: gpu, local. ",
        ),
    ],
)
def test_what_the_server_does_not_have_is_refused_with_what_it_has(checkout, arguments, said):
    done = checkout.run(*arguments)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert ask(checkout)[3] == ["gpu", "local"]


@pytest.mark.slow
def test_a_parameter_that_cannot_be_right_makes_no_flow_run(checkout):
    bad = (
        '{"trials": 0}',
        '{"hours": -1}',
        '{"tag": "a b"}',
        '{"profile": "laptob"}',
        '{"proposer": "oracle"}',
    )
    _, refused, runs, _ = ask(checkout, *bad)
    assert (list(refused), runs) == (list(bad), 0)
    good = (
        '{"trials": 1, "tag": "third", "profile": "mine/own.toml", "proposer": "tpe", "hours": 1}'
    )
    assert ask(checkout, good)[1:3] == [{}, 1]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("deployment run nightly-research", "deployment run nightly-research/nightly-research"),
        ("deployment run local --watch", "deployment run nightly-research/local --watch"),
        ("deployment run -p trials=2 local", "deployment run -p trials=2 nightly-research/local"),
        ("deployment inspect local", "deployment inspect nightly-research/local"),
        ("deployment run nightly-research/local", "deployment run nightly-research/local"),
        ("deployment run --tag local", "deployment run --tag local"),
        ("deployment ls", "deployment ls"),
        ("work-pool inspect local", "work-pool inspect local"),
        ("flow-run ls", "flow-run ls"),
    ],
)
def test_a_deployments_name_may_lack_its_flow(typed, meant):
    assert services._with_flow(typed.split(" ")) == meant.split(" ")
