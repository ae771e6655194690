# What Cilium finds on a node: its mounts and its cgroup, as its Pod has them on a computer.
# Arguments: CGROUP PROGRAMS OWN. OWN gets the pid of the process that keeps them.
set -euo pipefail
cgroup=$1 programs=$2 own=$3

# A cgroup of its own, below which Cilium attaches what it attaches to cgroups: never to the
# host's.
if [[ ${4:-} != inside ]]; then
  hierarchy=/sys/fs/cgroup
  [[ -e $hierarchy/cgroup.procs ]] || hierarchy=/sys/fs/cgroup/unified
  mkdir -p "$hierarchy/$cgroup"
  echo 0 >"$hierarchy/$cgroup/cgroup.procs"
  exec unshare --mount --propagation private --cgroup -- \
    bash -c "$BASH_EXECUTION_STRING" mounts "$cgroup" "$programs" "$own" inside
fi

# As the host counts, whose /proc this still is. Cilium wants that of its own PID namespace.
read -r pid _ </proc/self/stat
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t bpf bpf /sys/fs/bpf
# Parameters of the whole kernel that Cilium sets: the host's stay as they are.
for parameter in kernel/unprivileged_bpf_disabled kernel/timer_migration; do
  [[ -e /proc/sys/$parameter ]] || continue
  file=$own/${parameter//\//.}
  cat "/proc/sys/$parameter" >"$file"
  mount --bind "$file" "/proc/sys/$parameter"
done
mkdir -p /run/cilium /var/lib/cilium
mount -t tmpfs -o mode=755 tmpfs /run/cilium
mkdir /run/cilium/cgroup
mount -t cgroup2 cgroup2 /run/cilium/cgroup
mount -t tmpfs -o mode=755 tmpfs /var/lib/cilium
cp -r --no-preserve=mode "$programs/bpf" /var/lib/cilium/bpf

echo "$pid" >"$own/pid.new"
mv "$own/pid.new" "$own/pid"
exec sleep infinity
