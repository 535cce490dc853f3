"""A mock of AWS for Ray's cluster launcher, which wants keys, a token and an image that AWS has."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
from moto import mock_aws

KEYS = {"AWS_ACCESS_KEY_ID": "mock", "AWS_SECRET_ACCESS_KEY": "mock", "MOTO_IAM_LOAD_MANAGED_POLICIES": "true"}


def furnish(home: Path) -> None:
    """Put into a home folder what the launcher looks for there."""
    (home / ".ssh").mkdir()
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("token")


@contextmanager
def mocked_aws(config: dict[str, Any]) -> Iterator[Any]:
    """AWS for the time of a block, whose image the cluster's machines get; gives its EC2."""
    with mock_aws():
        ec2 = boto3.client("ec2", region_name=config["provider"]["region"])
        image = ec2.describe_images()["Images"][0]["ImageId"]
        for kind in config["available_node_types"].values():
            kind["node_config"]["ImageId"] = image
        yield ec2
