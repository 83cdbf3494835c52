"""Make the containers and the bucket that compose.yaml's services write into; those that are there stay.

Azurite and moto are named by the environment, as their clients name them: ``AZURE_STORAGE_CONNECTION_STRING``,
``AWS_ENDPOINT_URL`` and so on.
"""

from __future__ import annotations

import os

import boto3
from azure.core.exceptions import ResourceExistsError
from azure.storage.blob import BlobServiceClient

with BlobServiceClient.from_connection_string(os.environ["AZURE_STORAGE_CONNECTION_STRING"]) as azure:
    for name in ("mlflow", "stagesink"):
        try:
            azure.create_container(name)
        except ResourceExistsError:
            print(f"The container {name} is there.")

boto3.client("s3").create_bucket(Bucket="stagesink")  # in us-east-1 one's own bucket may be made twice
