"""The view in which MLflow's pages open. The pages themselves need a browser."""

from tasks.views import mlflow_page


def test_the_address_opens_the_view_of_an_experiment_that_has_it():
    tags = [{"key": key, "value": value} for key, value in mlflow_page.TAG.items()]
    plain = "http://h:1/#/experiments/7/runs?workflowType=machine_learning"
    address = mlflow_page.address("http://h:1", {"experiment_id": "7", "tags": tags})
    assert address == f"{plain}&viewStateShareKey={mlflow_page.NAME}"
    # Of an older version: the page would say that there is no such view.
    assert mlflow_page.address("http://h:1", {"experiment_id": "7"}) == plain
