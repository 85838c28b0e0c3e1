"""Once an AWS account and region: what `ray up ray_cluster.yaml` takes for granted; it may be run again.

    python cluster/aws.py BUCKET [--region us-west-2] [--ssh-from ADDRESS/32]

Makes a private bucket, a security group `lbdist` (open to its own members and, for SSH, to one address), and
the instance profiles `lbdist-head` (may start and end instances) and `lbdist-worker` (may not); both read and
write the bucket, and nothing else in S3.
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import urllib.request
from typing import Any

import boto3
from botocore.exceptions import ClientError

INSTANCES = [
    *(f"ec2:{verb}Instances" for verb in ("Run", "Start", "Stop", "Terminate")),
    *("ec2:CreateTags", "ec2:DeleteTags", "ec2:Describe*"),
]
"""What Ray's autoscaler does from the head."""


def bucket(name: str, region: str) -> None:
    """A private bucket; one that is there and ours is left as it is."""
    s3 = boto3.client("s3", region_name=region)
    place = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
    try:
        s3.head_bucket(Bucket=name)
    except ClientError as error:
        if error.response["Error"]["Code"] != "404":
            raise SystemExit(f"BUCKET={name}: is somebody else's; take another name") from error
        s3.create_bucket(Bucket=name, **place)  # type: ignore[arg-type]
        closed = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
        s3.put_public_access_block(Bucket=name, PublicAccessBlockConfiguration=dict.fromkeys(closed, True))


def profile(name: str, statements: list[dict[str, Any]]) -> str:
    """A role for instances with these rights, and the profile of the same name; returns the role's ARN."""
    iam = boto3.client("iam")
    trust = {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}
    document = {"Version": "2012-10-17", "Statement": [trust]}
    try:
        role = iam.get_role(RoleName=name)
    except iam.exceptions.NoSuchEntityException:
        role = iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(document))
    rights = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", **item} for item in statements]}
    iam.put_role_policy(RoleName=name, PolicyName="lbdist", PolicyDocument=json.dumps(rights))
    try:
        found = iam.get_instance_profile(InstanceProfileName=name)
    except iam.exceptions.NoSuchEntityException:
        found = iam.create_instance_profile(InstanceProfileName=name)
    if not found["InstanceProfile"]["Roles"]:
        iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
    return str(role["Role"]["Arn"])


def security_group(name: str, region: str, ssh_from: str) -> None:
    """A group in the default network: all among its members, SSH from one address, no more from outside."""
    ec2 = boto3.client("ec2", region_name=region)
    (network,) = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
    where = [{"Name": "vpc-id", "Values": [network["VpcId"]]}, {"Name": "group-name", "Values": [name]}]
    found = ec2.describe_security_groups(Filters=where)["SecurityGroups"]  # type: ignore[arg-type]
    if not found:
        ec2.create_security_group(GroupName=name, Description="lbdist", VpcId=network["VpcId"])
        found = ec2.describe_security_groups(Filters=where)["SecurityGroups"]  # type: ignore[arg-type]
    key = found[0]["GroupId"]
    wanted = [
        {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": key}]},
        {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": ssh_from}]},
    ]
    if found[0]["IpPermissions"]:  # of an address that we had before
        ec2.revoke_security_group_ingress(GroupId=key, IpPermissions=found[0]["IpPermissions"])
    ec2.authorize_security_group_ingress(GroupId=key, IpPermissions=wanted)  # type: ignore[arg-type]


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("bucket", metavar="BUCKET", help="where results go; its name is unique in all of AWS")
    parser.add_argument("--region", default="us-west-2", help="as in ray_cluster.yaml")
    parser.add_argument("--ssh-from", help="address/32 that SSH is open to; by default this machine's")
    given = parser.parse_args(arguments)
    ssh_from = given.ssh_from
    if ssh_from is None:
        with urllib.request.urlopen("https://checkip.amazonaws.com", timeout=10) as answer:
            ssh_from = f"{answer.read().decode().strip()}/32"
    ipaddress.ip_network(ssh_from)
    objects = {
        "Action": ["s3:GetObject", "s3:PutObject", "s3:DeleteObject"],
        "Resource": f"arn:aws:s3:::{given.bucket}/*",
    }
    listing = {
        "Action": ["s3:ListBucket", "s3:GetBucketLocation"],
        "Resource": f"arn:aws:s3:::{given.bucket}",
    }
    bucket(given.bucket, given.region)
    worker = profile("lbdist-worker", [objects, listing])
    images = "arn:aws:ssm:*:*:parameter/aws/service/deeplearning/*"
    head = [
        {"Action": INSTANCES, "Resource": "*"},
        {"Action": ["iam:PassRole"], "Resource": worker},
        {"Action": ["ssm:GetParameter", "ssm:GetParameters"], "Resource": images},
    ]
    profile("lbdist-head", [objects, listing, *head])
    security_group("lbdist", given.region, ssh_from)
    print(
        f"ready: SSH from {ssh_from}; now `ray up ray_cluster.yaml`, and storage=s3://{given.bucket}/lbdist"
    )


if __name__ == "__main__":
    main()
