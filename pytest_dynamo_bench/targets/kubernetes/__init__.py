"""The Kubernetes target: a configuration as a DynamoGraphDeployment on a cluster."""
