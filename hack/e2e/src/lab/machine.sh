# A computer of namespaces: network (given), processes, mounts, host name and cgroups.
# Arguments: ROLE STATE CGROUP. STATE/machines/ROLE holds its disk, which outlives it, and
# the pid of its process 1 as the host counts.
set -euo pipefail
role=$1 state=$2 cgroup=$3
own=$state/machines/$role

# Its cgroups, before it is given a view of its own of them.
if [[ ${4:-} != inside ]]; then
  for procs in /sys/fs/cgroup/cgroup.procs /sys/fs/cgroup/*/cgroup.procs; do
    [[ -e $procs ]] || continue
    hierarchy=$(dirname "$procs")
    # On a host of cgroup v2 alone the folders below the first are cgroups of others.
    [[ -e /sys/fs/cgroup/cgroup.procs && $hierarchy != /sys/fs/cgroup ]] && continue
    mkdir -p "$hierarchy/$cgroup"
    for file in cpuset.cpus cpuset.mems; do
      # Version 1 wants these before the first process comes.
      if [[ -e $hierarchy/tasks && -e $hierarchy/$file ]]; then
        cat "$hierarchy/$file" >"$hierarchy/$cgroup/$file"
      fi
    done
    echo 0 >"$hierarchy/$cgroup/cgroup.procs"
  done
  exec unshare --mount --propagation private --uts --cgroup --pid --fork --kill-child -- \
    bash -c "$BASH_EXECUTION_STRING" machine "$role" "$state" "$cgroup" inside
fi

read -r pid _ </proc/self/stat
hostname "$role"
exec 3<"$state"

# Its disk: what is written over the host's files is kept there.
for part in etc var/lib var/log; do
  mkdir -p "$own/disk/$part" "$own/work/$part"
  mount -t overlay -o "lowerdir=/$part,upperdir=$own/disk/$part,workdir=$own/work/$part" overlay "/$part"
done

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/lock /run/machine/proc "$state"
mount --no-canonicalize --bind /proc/self/fd/3 "$state"
exec 3<&-

cgroups=/sys/fs/cgroup
if [[ $(wc -l </proc/self/cgroup) == 1 ]]; then
  mount -t cgroup2 cgroup2 "$cgroups"
  # A cgroup whose controllers its children use may hold no process itself.
  mkdir -p "$cgroups/machine"
  while read -r process; do echo "$process" >"$cgroups/machine/cgroup.procs"; done <"$cgroups/cgroup.procs"
  for controller in $(<"$cgroups/cgroup.controllers"); do
    echo "+$controller" >"$cgroups/cgroup.subtree_control"
  done
  joined=("$cgroups/machine/cgroup.procs")
else
  mount -t tmpfs -o mode=755 tmpfs "$cgroups"
  joined=()
  while IFS=: read -r _ controllers _; do
    case $controllers in
      '') folder=unified options=(-t cgroup2) ;;
      name=*) folder=${controllers#name=} options=(-t cgroup -o "none,$controllers") ;;
      *) folder=$controllers options=(-t cgroup -o "$controllers") ;;
    esac
    mkdir "$cgroups/$folder"
    mount "${options[@]}" cgroup "$cgroups/$folder"
    joined+=("$cgroups/$folder/cgroup.procs")
  done </proc/self/cgroup
fi
{
  echo '#!/bin/sh'
  for procs in "${joined[@]}"; do echo "echo 0 >$procs"; done
  echo 'exec "$@"'
} >/run/machine/join
chmod 755 /run/machine/join

# Parameters of the whole kernel that a kubelet wants: it finds them set, and the host's
# stay as they are.
while read -r parameter value; do
  [[ -e /proc/sys/$parameter ]] || continue
  file=/run/machine/proc/${parameter//\//.}
  echo "$value" >"$file"
  mount --bind "$file" "/proc/sys/$parameter"
done <<PARAMETERS
vm/overcommit_memory 1
vm/panic_on_oom 0
kernel/panic 10
kernel/panic_on_oops 1
kernel/keys/root_maxkeys 1000000
kernel/keys/root_maxbytes 25000000
PARAMETERS

# What is mounted for a container is seen by those that are to see it.
mount --make-rshared /

echo "$pid" >"$own/pid.new"
mv "$own/pid.new" "$own/pid"
# A shell, because it collects the processes that nobody waits for.
sleep infinity &
wait
