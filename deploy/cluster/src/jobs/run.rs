//! Jobs, from their making to their end.

use serde_json::Value;
use thiserror::Error;
use tokio::time::sleep;
use tracing::info;

use crate::{
    api::{ApiError, ApplyCalls},
    limits,
    ready::troubles,
};

/// Why a Job did not do its work.
#[derive(Debug, Error)]
pub enum JobError {
    /// The API refused, or cannot be reached.
    #[error("job {job}: {source}")]
    Api {
        /// Its name.
        job: String,
        /// What the API said.
        source: ApiError,
    },
    /// It was given up.
    #[error("job {job} failed: {}", .said.join("; "))]
    Failed {
        /// Its name.
        job: String,
        /// What its pods said.
        said: Vec<String>,
    },
    /// Somebody else removed it.
    #[error("job {0} was removed before it was done; run the same command again")]
    Gone(String),
}

fn place(job: &Value) -> (String, String) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    (text(&job["metadata"]["namespace"]), text(&job["metadata"]["name"]))
}

/// Runs Jobs beside each other and waits until all have done their work. One of an earlier run goes first, and its pods: two
/// that write the same volume would spoil it. What pods wait for is told once.
pub async fn run(
    calls: &impl ApplyCalls,
    jobs: &[Value],
    tell: &mut dyn FnMut(&str),
) -> Result<(), JobError> {
    remove(calls, jobs).await?;
    for job in jobs {
        let (namespace, name) = place(job);
        calls.apply(job).await.map_err(|source| JobError::Api { job: name.clone(), source })?;
        info!(%namespace, job = %name, "started");
    }
    let mut told = Vec::new();
    for job in jobs {
        let (namespace, name) = place(job);
        let api = |source| JobError::Api { job: name.clone(), source };
        loop {
            let found = calls.read("Job", &namespace, &name).await.map_err(api)?;
            let found = found.ok_or_else(|| JobError::Gone(name.clone()))?;
            if is(&found, "Complete") {
                break;
            }
            let pods = calls.pods(&namespace, &pods_of(&name)).await.map_err(api)?;
            let said: Vec<String> = pods.iter().flat_map(troubles).collect();
            if is(&found, "Failed") {
                return Err(JobError::Failed { job: name, said });
            }
            for one in said.into_iter().filter(|one| !one.ends_with("ContainerCreating")) {
                if !told.contains(&one) {
                    tell(&one);
                    told.push(one);
                }
            }
            sleep(limits::READY_LOOK_EVERY).await;
        }
    }
    Ok(())
}

/// Removes Jobs and waits until nothing of them is left.
pub async fn remove(calls: &impl ApplyCalls, jobs: &[Value]) -> Result<(), JobError> {
    for job in jobs {
        let (namespace, name) = place(job);
        let api = |source| JobError::Api { job: name.clone(), source };
        if calls.read("Job", &namespace, &name).await.map_err(api)?.is_none() {
            continue;
        }
        calls.remove("Job", &namespace, &name).await.map_err(api)?;
        while calls.read("Job", &namespace, &name).await.map_err(api)?.is_some()
            || !calls.pods(&namespace, &pods_of(&name)).await.map_err(api)?.is_empty()
        {
            sleep(limits::READY_LOOK_EVERY).await;
        }
    }
    Ok(())
}

fn pods_of(job: &str) -> String {
    format!("batch.kubernetes.io/job-name={job}")
}

fn is(job: &Value, condition: &str) -> bool {
    let conditions = job["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|one| one["type"] == condition && one["status"] == "True")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::shelf::Shelf;

    fn job(name: &str) -> Value {
        json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name, "namespace": "shop"}, "spec": {}})
    }

    #[tokio::test]
    async fn jobs_are_waited_for_and_those_of_an_earlier_run_go_first() {
        let shelf = Shelf::default();
        shelf.put(job("a"));
        run(&shelf, &[job("a"), job("b")], &mut |_| {}).await.expect("done");
        assert_eq!(shelf.done(), ["remove job/a", "apply job/a", "apply job/b"]);
    }

    #[test]
    fn only_a_condition_that_holds_counts() {
        let with =
            |kind: &str, status: &str| json!({"status": {"conditions": [{"type": kind, "status": status}]}});
        assert!(is(&with("Complete", "True"), "Complete"));
        for not in [with("Complete", "False"), with("SuccessCriteriaMet", "True"), json!({})] {
            assert!(!is(&not, "Complete"), "{not}");
        }
    }
}
