//! Real services, each in a control group that is named like its systemd unit.

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tests::cgroup::Group;
use tests::postgres::{self, AS_USER};
use tests::process::Process;
use tests::{Failed, free_port, wait_for};

/// What the units are in.
const SLICE: &str = "behaveguard-eval.slice";

/// Everything that runs.
pub(crate) struct Services {
    // Processes end before their groups.
    processes: Vec<Process>,
    groups: Vec<(String, Group)>,
    _slice: Group,
    pub(crate) nginx: u16,
    pub(crate) redis: u16,
    pub(crate) sshd: u16,
    pub(crate) postgres: u16,
    pub(crate) ssh_key: PathBuf,
}

impl Services {
    /// Starts them all below `dir`.
    pub(crate) fn start(dir: &Path) -> Result<Self, Failed> {
        let failed = |error| Failed::new("preparing the services", error);
        let slice = Group::make(SLICE)?;
        let mut services = Self {
            processes: Vec::new(),
            groups: Vec::new(),
            _slice: slice,
            nginx: free_port()?,
            redis: free_port()?,
            sshd: free_port()?,
            postgres: free_port()?,
            ssh_key: dir.join("key"),
        };
        for unit in ["nginx", "redis-server", "ssh", "postgresql", "cron", "build"] {
            let name = format!("{unit}.service");
            let group = Group::make(&format!("{SLICE}/{name}"))?;
            services.groups.push((name, group));
        }
        // The database's user reaches its own folder only by way of this one.
        Command::new("chmod").arg("755").arg(dir).status().map_err(failed)?;
        services.nginx(dir)?;
        services.redis(dir)?;
        services.sshd(dir)?;
        services.postgres(dir)?;
        services.cron(dir)?;
        services.build(dir)?;
        Ok(services)
    }

    /// The units, as the agent names them.
    pub(crate) fn units(&self) -> Vec<String> {
        self.groups.iter().map(|(name, _)| name.clone()).collect()
    }

    fn group(&self, unit: &str) -> &Group {
        let found = self.groups.iter().find(|(name, _)| name == unit);
        found.map(|(_, group)| group).expect("one of the units above")
    }

    /// A command that runs inside a unit.
    pub(crate) fn inside(&self, unit: &str, program: &str) -> Command {
        self.group(unit).command(program)
    }

    fn run(&mut self, dir: &Path, unit: &str, program: &str, arguments: &[&str]) -> Result<(), Failed> {
        let script = self.group(unit).script();
        let mut all = vec!["-c", &script, program];
        all.extend(arguments);
        let log = dir.join(format!("{unit}.log"));
        self.processes.push(Process::start(Path::new("/bin/sh"), &all, &log, Stdio::null())?);
        Ok(())
    }

    fn nginx(&mut self, dir: &Path) -> Result<(), Failed> {
        let (home, port) = (dir.join("nginx"), self.nginx);
        for n in 0..50 {
            write(&home.join("www").join(format!("{n}.html")), &"x".repeat(200 * (n + 1)))?;
        }
        let home = home.display();
        let config = format!(
            "daemon off;\nworker_processes 2;\npid {home}/pid;\nerror_log {home}/error.log;\nevents {{}}\n\
             http {{ access_log {home}/access.log; client_body_temp_path {home}/body; proxy_temp_path {home}/proxy;\n\
             fastcgi_temp_path {home}/fastcgi; uwsgi_temp_path {home}/uwsgi; scgi_temp_path {home}/scgi;\n\
             server {{ listen 127.0.0.1:{port}; root {home}/www; }} }}\n"
        );
        let file = dir.join("nginx.conf");
        write(&file, &config)?;
        let error_log = format!("{home}/error.log");
        self.run(
            dir,
            "nginx.service",
            "/usr/sbin/nginx",
            &["-e", &error_log, "-c", &file.display().to_string()],
        )?;
        listens("nginx", self.nginx)
    }

    fn redis(&mut self, dir: &Path) -> Result<(), Failed> {
        let home = dir.join("redis");
        fs::create_dir_all(&home).map_err(|error| Failed::new(home.display(), error))?;
        let (home, port) = (home.display().to_string(), self.redis.to_string());
        let arguments = [
            "--port",
            &port,
            "--bind",
            "127.0.0.1",
            "--dir",
            &home,
            "--appendonly",
            "yes",
            "--save",
            "5 100",
        ];
        self.run(dir, "redis-server.service", "/usr/bin/redis-server", &arguments)?;
        listens("redis", self.redis)
    }

    fn sshd(&mut self, dir: &Path) -> Result<(), Failed> {
        let host_key = dir.join("host_key");
        for key in [&host_key, &self.ssh_key] {
            let made =
                Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(key).status();
            made.map_err(|error| Failed::new("ssh-keygen", error))?;
        }
        let _ = fs::create_dir_all("/run/sshd");
        let (authorized, config) = (dir.join("key.pub"), dir.join("sshd_config"));
        let text = format!(
            "ListenAddress 127.0.0.1:{}\nHostKey {}\nAuthorizedKeysFile {}\nPermitRootLogin prohibit-password\nUsePAM no\n\
             StrictModes no\nPidFile none\nPasswordAuthentication no\n",
            self.sshd,
            host_key.display(),
            authorized.display()
        );
        write(&config, &text)?;
        self.run(dir, "ssh.service", "/usr/sbin/sshd", &["-D", "-e", "-f", &config.display().to_string()])?;
        listens("sshd", self.sshd)
    }

    fn postgres(&mut self, dir: &Path) -> Result<(), Failed> {
        let bin = postgres::programs()?;
        let home = dir.join("postgres");
        fs::create_dir_all(&home).map_err(|error| Failed::new(home.display(), error))?;
        let owned = Command::new("chown").arg("postgres").arg(&home).status();
        owned.map_err(|error| Failed::new("chown", error))?;
        let data = home.join("data").display().to_string();
        let made = Command::new("setpriv")
            .args(AS_USER)
            .arg(bin.join("initdb"))
            .args(["--auth=trust", "--no-sync", "-D", &data])
            .stdout(Stdio::null())
            .status()
            .map_err(|error| Failed::new("initdb", error))?;
        if !made.success() {
            return Err(Failed(format!("initdb ended with {made}")));
        }
        let (server, port) = (bin.join("postgres").display().to_string(), self.postgres.to_string());
        let sockets = home.display().to_string();
        let mut arguments = AS_USER.to_vec();
        arguments.extend([&server[..], "-D", &data, "-p", &port, "-h", "127.0.0.1", "-k", &sockets]);
        self.run(dir, "postgresql.service", "/usr/bin/setpriv", &arguments)?;
        listens("postgres", self.postgres)
    }

    /// A job full of small tools, again and again.
    fn cron(&mut self, dir: &Path) -> Result<(), Failed> {
        let script = dir.join("job.sh");
        let home = dir.join("cron");
        let text = format!(
            "mkdir -p {0}/data {0}/old; cd {0}\n\
             while :; do\n\
               for n in 1 2 3; do date +%s%N >> data/$n.txt; head -c $((RANDOM % 4000)) /dev/zero >> data/$n.bin; done\n\
               find data -type f -size +20k -exec gzip -f {{}} \\;\n\
               grep -c . data/*.txt | awk -F: '{{s+=$2}} END {{print s}}' > total\n\
               sort data/1.txt | uniq | tail -n 5 | sed 's/^/line /' > report\n\
               tar czf old/$((RANDOM % 5)).tgz data; df / | tail -1 | cut -d' ' -f1 >> report; cat report > /dev/null\n\
               [ $((RANDOM % 4)) = 0 ] && mv data/2.txt data/2.old\n\
               sleep 0.$((RANDOM % 9 + 1))\n\
             done\n",
            home.display()
        );
        write(&script, &text)?;
        self.run(dir, "cron.service", "/bin/bash", &[&script.display().to_string()])
    }

    /// A package that is built again and again.
    fn build(&mut self, dir: &Path) -> Result<(), Failed> {
        let home = dir.join("build");
        for n in 0..6 {
            write(&home.join(format!("f{n}.c")), &format!("int f{n}(int x) {{ return x * {n} + 1; }}\n"))?;
        }
        write(&home.join("main.c"), "int f1(int); int main(void) { return f1(0) - 1; }\n")?;
        let makefile = "OBJ = main.o f0.o f1.o f2.o f3.o f4.o f5.o\nprogram: $(OBJ)\n\tcc -o $@ $(OBJ)\n\t./program\n\
                        %.o: %.c\n\tcc -O1 -c -o $@ $<\nclean:\n\trm -f *.o program\n";
        write(&home.join("Makefile"), makefile)?;
        let script = dir.join("build.sh");
        let text = format!(
            "cd {}\nwhile :; do make -s clean; make -s; sleep 1.$((RANDOM % 9)); done\n",
            home.display()
        );
        write(&script, &text)?;
        self.run(dir, "build.service", "/bin/bash", &[&script.display().to_string()])
    }
}

impl Drop for Services {
    fn drop(&mut self) {
        self.processes.clear();
        for (_, group) in &self.groups {
            // What a service left behind is in its group.
            let left = fs::read_to_string(group.processes()).unwrap_or_default();
            for pid in
                left.lines().filter_map(|line| line.parse().ok()).filter_map(rustix::process::Pid::from_raw)
            {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }
}

fn listens(what: &str, port: u16) -> Result<(), Failed> {
    wait_for(what, Duration::from_secs(20), || Ok(TcpStream::connect(("127.0.0.1", port)).ok().map(drop)))
}

fn write(file: &Path, text: &str) -> Result<(), Failed> {
    let folder = file.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder)
        .and_then(|()| fs::write(file, text))
        .map_err(|error| Failed::new(file.display(), error))
}
