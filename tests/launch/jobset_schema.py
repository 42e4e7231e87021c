"""The fields of a JobSet, after its public API (jobset.x-k8s.io/v1alpha2, release 0.9).

A dict has the fields of an object; a list has the one schema of its items; `Job` stands for the
template of a Kubernetes Job, which has a schema elsewhere.
"""


class Job:
    pass


ACTIONS = ("FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts")
REASONS = ("BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes", "PodFailurePolicy")
JOBSET = {
    "apiVersion": ("jobset.x-k8s.io/v1alpha2",),
    "kind": ("JobSet",),
    "metadata": {"name": str, "labels": dict, "annotations": dict, "namespace": str},
    "spec": {
        "suspend": bool,
        "ttlSecondsAfterFinished": int,
        "managedBy": str,
        "network": {
            "enableDNSHostnames": bool,
            "subdomain": str,
            "publishNotReadyAddresses": bool,
        },
        "successPolicy": {"operator": ("All", "Any"), "targetReplicatedJobs": [str]},
        "failurePolicy": {
            "maxRestarts": int,
            "restartStrategy": ("Recreate", "BlockingRecreate"),
            "rules": [
                {
                    "name": str,
                    "action": ACTIONS,
                    "onJobFailureReasons": [REASONS],
                    "targetReplicatedJobs": [str],
                }
            ],
        },
        "startupPolicy": {"startupPolicyOrder": ("AnyOrder", "InOrder")},
        "coordinator": {"replicatedJob": str, "jobIndex": int, "podIndex": int},
        "replicatedJobs": [{"name": str, "replicas": int, "template": Job}],
    },
}


def wrong(value, schema=JOBSET, where="") -> list[str]:
    """What does not fit, as sentences."""
    if schema is Job:
        return []
    if isinstance(schema, dict):
        if not isinstance(value, dict):
            return [f"{where} is no object"]
        unknown = [f"{where}.{key} is unknown" for key in value if key not in schema]
        known = [key for key in value if key in schema]
        return unknown + [
            text for k in known for text in wrong(value[k], schema[k], f"{where}.{k}")
        ]
    if isinstance(schema, list):
        if not isinstance(value, list):
            return [f"{where} is no list"]
        found = (wrong(item, schema[0], f"{where}[{i}]") for i, item in enumerate(value))
        return [text for texts in found for text in texts]
    if isinstance(schema, tuple):
        return [] if value in schema else [f"{where} is {value!r}, none of {schema}"]
    return [] if type(value) is schema else [f"{where} is {value!r}, no {schema.__name__}"]
