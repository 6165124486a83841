//! What controllers and a kubelet do with StatefulSets of PostgreSQL and with Jobs, as far as it is needed here.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use tidelock_tests::{
    pg::Pg,
    process::{self, Process},
    site::binary,
};

use super::{Shelf, documents};

/// From one look at the objects to the next.
const LOOK: Duration = Duration::from_millis(10);

/// Where a claim's files are.
pub(super) fn claim(directory: &Path, namespace: &str, name: &str) -> PathBuf {
    directory.join("claims").join(namespace).join(name)
}

/// Where a pod's sockets and logs are.
pub(super) fn run_directory(directory: &Path, namespace: &str, pod: &str) -> PathBuf {
    directory.join("run").join(namespace).join(pod)
}

/// A node, as long as this is there. All that it runs is killed then.
pub(super) struct Node {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Node {
    pub(super) fn start(shelf: Arc<Shelf>, directory: PathBuf, receiver: String) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        // What it starts ends with this thread.
        let thread = thread::spawn(move || {
            let mut kubelet = Kubelet { shelf, directory, receiver, running: BTreeMap::new(), logs: 0 };
            while !stopped.load(Ordering::Relaxed) {
                kubelet.turn();
                thread::sleep(LOOK);
            }
            kubelet.lose();
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        if !thread::panicking() {
            ended.expect("it is there").expect("the node did not panic");
        }
    }
}

/// A pod that runs.
struct Running {
    pg: Pg,
    sidecar: Option<Process>,
    template: Value,
}

struct Kubelet {
    shelf: Arc<Shelf>,
    directory: PathBuf,
    receiver: String,
    /// By namespace and name of their StatefulSet; each has one pod.
    running: BTreeMap<(String, String), Running>,
    logs: u32,
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn list(value: &Value) -> Vec<Value> {
    value.as_array().cloned().unwrap_or_default()
}

impl Kubelet {
    fn turn(&mut self) {
        let all = |resource: &str| -> Vec<Value> {
            self.shelf.with(|all| {
                all.iter().filter(|(name, _)| name.0 == resource).map(|(_, one)| one.clone()).collect()
            })
        };
        let (jobs, sets) = (all("jobs"), all("statefulsets"));
        for job in jobs.iter().filter(|job| job["status"].is_null()) {
            self.run_job(job);
        }
        let wanted = |(namespace, name): &(String, String)| {
            let found = sets
                .iter()
                .find(|set| set["metadata"]["name"] == **name && set["metadata"]["namespace"] == **namespace);
            found.filter(|set| set["spec"]["replicas"].as_i64().unwrap_or(1) > 0).cloned()
        };
        let over = self.running.iter().filter(|(key, running)| {
            wanted(key).is_none_or(|set| set["spec"]["template"] != running.template)
        });
        let over: Vec<_> = over.map(|(key, _)| key.clone()).collect();
        for key in over {
            self.end(&key);
        }
        for set in &sets {
            let key = (text(&set["metadata"]["namespace"]), text(&set["metadata"]["name"]));
            if wanted(&key).is_some() && !self.running.contains_key(&key) {
                self.bring_up(&key, set);
            }
            let replicas = i64::from(self.running.contains_key(&key));
            self.put_status(&key, set, replicas);
        }
    }

    fn put_status(&self, (namespace, name): &(String, String), set: &Value, replicas: i64) {
        let status = json!({"observedGeneration": set["metadata"]["generation"], "replicas": replicas,
            "readyReplicas": replicas, "updatedReplicas": replicas});
        self.shelf.with(|all| {
            if let Some(set) = all.get_mut(&("statefulsets".to_owned(), namespace.clone(), name.clone())) {
                set["status"] = status;
            }
        });
    }

    /// Starts a set's pod, or says in it why it does not start.
    fn bring_up(&mut self, key: &(String, String), set: &Value) {
        let (namespace, name) = key;
        let pod = format!("{name}-0");
        let started = self.start(namespace, &pod, set);
        let mut status = json!({"phase": "Running"});
        match started {
            Ok(running) => {
                self.running.insert(key.clone(), running);
            }
            Err(why) => {
                status = json!({"phase": "Pending", "initContainerStatuses": [{"name": "tidelock-restore",
                    "state": {"waiting": {"reason": "CrashLoopBackOff", "message": why}}}]});
            }
        }
        let labels = &set["spec"]["template"]["metadata"]["labels"];
        self.shelf.put(&json!({"kind": "Pod", "apiVersion": "v1", "status": status,
            "metadata": {"name": pod, "namespace": namespace, "labels": labels}}));
    }

    fn start(&mut self, namespace: &str, pod: &str, set: &Value) -> Result<Running, String> {
        let name = text(&set["metadata"]["name"]);
        let mut injected = self.injected(namespace, set)?;
        let spec = &mut injected["spec"]["template"]["spec"];
        let mut volumes = list(&spec["volumes"]);
        for template in list(&set["spec"]["volumeClaimTemplates"]) {
            let (volume, claim) =
                (&template["metadata"]["name"], format!("{}-{name}-0", text(&template["metadata"]["name"])));
            if self.shelf.get("persistentvolumeclaims", namespace, &claim).is_none() {
                self.shelf.put(&json!({"kind": "PersistentVolumeClaim", "spec": template["spec"],
                    "metadata": {"name": claim, "namespace": namespace}}));
            }
            volumes.push(json!({"name": volume, "persistentVolumeClaim": {"claimName": claim}}));
        }
        spec["volumes"] = volumes.into();
        let mut sidecar = None;
        for container in list(&spec["initContainers"]) {
            let mut command = self.command(namespace, pod, spec, &container)?;
            if container["restartPolicy"] == "Always" {
                let run = run_directory(&self.directory, namespace, pod);
                fs::create_dir_all(&run).expect("writable");
                let ports = run.join("sidecar.ports");
                let _ = fs::remove_file(&ports);
                command.arg("--port-file").arg(ports);
                let mut process = Process::spawn("sidecar", &mut command, &self.log("sidecar"));
                // Of a primary that was away its receiver speaks, and of writers that were fenced.
                process.allow("fenced").allow("connection");
                sidecar = Some(process);
            } else {
                run_to_end(&mut command)?;
            }
        }
        let mounted = self.mounts(namespace, pod, spec, &spec["containers"][0])?;
        let data =
            mounted.iter().find(|(path, _)| path == "/var/lib/postgresql/data").expect("data is mounted");
        // In a pod the process ids of another are nobody's.
        let _ = fs::remove_file(data.1.join("postmaster.pid"));
        let mut pg = Pg::at(&data.1, &run_directory(&self.directory, namespace, pod));
        pg.try_start()?;
        Ok(Running { pg, sidecar, template: set["spec"]["template"].clone() })
    }

    /// What the injector makes of it.
    fn injected(&mut self, namespace: &str, set: &Value) -> Result<Value, String> {
        let (before, after) = (self.log("set"), self.log("injected"));
        let own = self.shelf.get("namespaces", "", namespace).ok_or("its namespace is gone")?;
        fs::write(&before, format!("---\n{own}\n---\n{set}\n")).expect("writable");
        let mut command = Command::new(binary());
        command.args(["inject", "--receiver", &self.receiver, "-f"]).arg(&before);
        fs::write(&after, process::run(&mut command)).expect("writable");
        Ok(documents(&after).into_iter().find(|one| one["kind"] == set["kind"]).expect("it is there"))
    }

    /// Where the mounts of a container are here, the longest paths first.
    fn mounts(
        &self,
        namespace: &str,
        pod: &str,
        spec: &Value,
        container: &Value,
    ) -> Result<Vec<(String, PathBuf)>, String> {
        let volumes = list(&spec["volumes"]);
        let mut mounts = Vec::new();
        for mount in list(&container["volumeMounts"]) {
            let volume = volumes.iter().find(|one| one["name"] == mount["name"]).expect("a volume");
            let own = run_directory(&self.directory, namespace, pod).join(text(&volume["name"]));
            let path = if let Some(name) = volume["persistentVolumeClaim"]["claimName"].as_str() {
                claim(&self.directory, namespace, name)
            } else if let Some(name) = volume["secret"]["secretName"].as_str() {
                self.files_of(namespace, name, &own)?;
                own
            } else {
                own
            };
            fs::create_dir_all(&path).expect("writable");
            mounts.push((text(&mount["mountPath"]), path));
        }
        mounts.sort_by_key(|(path, _)| std::cmp::Reverse(path.len()));
        Ok(mounts)
    }

    /// Writes a Secret's files.
    fn files_of(&self, namespace: &str, name: &str, directory: &Path) -> Result<(), String> {
        let secret =
            self.shelf.get("secrets", namespace, name).ok_or_else(|| format!("secret {name} not found"))?;
        fs::create_dir_all(directory).expect("writable");
        for (file, value) in secret["data"].as_object().into_iter().flatten() {
            let bytes = STANDARD.decode(text(value)).expect("a Secret's data");
            fs::write(directory.join(file), bytes).expect("writable");
        }
        Ok(())
    }

    /// A container's program, with what it is told in this machine's paths.
    fn command(
        &self,
        namespace: &str,
        pod: &str,
        spec: &Value,
        container: &Value,
    ) -> Result<Command, String> {
        let mounts = self.mounts(namespace, pod, spec, container)?;
        let mut command = Command::new(binary());
        for argument in list(&container["args"]) {
            let mut argument =
                text(&argument).replace("$(TIDELOCK_POD)", pod).replace("0.0.0.0:9902", "127.0.0.1:0");
            for (path, here) in &mounts {
                argument = argument.replace(path, here.to_str().expect("UTF-8"));
            }
            // Programs write what tests read.
            command.arg(argument.replace("--log-format=json", "--log-format=text"));
        }
        command.env_remove("TIDELOCK_LOG").env_remove("TIDELOCK_RECEIVER").env_remove("TIDELOCK_IDENTITY");
        Ok(command)
    }

    fn run_job(&mut self, job: &Value) {
        let (namespace, name) = (text(&job["metadata"]["namespace"]), text(&job["metadata"]["name"]));
        let spec = &job["spec"]["template"]["spec"];
        let mut done = Ok(());
        for container in list(&spec["initContainers"]).iter().chain(&list(&spec["containers"])) {
            let command = self.command(&namespace, &name, spec, container);
            done = done.and_then(|()| run_to_end(&mut command?));
        }
        let mut labels = job["spec"]["template"]["metadata"]["labels"].clone();
        labels["batch.kubernetes.io/job-name"] = name.clone().into();
        let condition = if done.is_ok() { "Complete" } else { "Failed" };
        if let Err(why) = done {
            let status = json!({"phase": "Failed", "containerStatuses": [{"name": "work",
                "state": {"terminated": {"exitCode": 1, "message": why}}}]});
            self.shelf.put(&json!({"kind": "Pod", "apiVersion": "v1", "status": status,
                "metadata": {"name": name, "namespace": namespace, "labels": labels}}));
        }
        self.shelf.with(|all| {
            if let Some(job) = all.get_mut(&("jobs".to_owned(), namespace, name)) {
                job["status"] = json!({"conditions": [{"type": condition, "status": "True"}]});
            }
        });
    }

    /// In order: the application, then the sidecar, whose last cut has the application's last write.
    fn end(&mut self, key: &(String, String)) {
        let mut running = self.running.remove(key).expect("it runs");
        running.pg.stop();
        if let Some(mut sidecar) = running.sidecar.take()
            && sidecar.ended().is_none()
        {
            sidecar.stop();
        }
        let pod = ("pods".to_owned(), key.0.clone(), format!("{}-0", key.1));
        self.shelf.with(|all| all.remove(&pod));
    }

    /// The power is cut.
    fn lose(&mut self) {
        for running in self.running.values_mut() {
            running.pg.kill();
            if let Some(sidecar) = &mut running.sidecar {
                sidecar.kill();
            }
        }
        self.running.clear();
        self.shelf.with(|all| all.retain(|(resource, ..), _| resource != "pods"));
    }

    fn log(&mut self, what: &str) -> PathBuf {
        self.logs += 1;
        fs::create_dir_all(self.directory.join("logs")).expect("writable");
        self.directory.join("logs").join(format!("{what}-{}", self.logs))
    }
}

fn run_to_end(command: &mut Command) -> Result<(), String> {
    let out = process::output(command);
    match out.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&out.stderr).into_owned()),
    }
}
