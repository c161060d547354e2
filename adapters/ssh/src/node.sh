#!/bin/sh
# shellcheck shell=dash
# Everything that Kadence does on a node. Run as root, by hand or by Kadence, under dash, busybox ash or bash.
#
#   facts                      read-only: what an inventory needs
#   glance                     read-only: the part of it that is looked at again before each step
#   follow ROLE SECS PATTERN.. read-only: unit, etcd and matching lines of the journal, until stdin ends
#   receive KIND NAME DIGEST BYTES       stores stdin as a file of Kadence's, verified
#   send PATH                  writes a file to stdout
#   order ID TURN HOLDER SECS ROLE TASK ARG..   has a task performed in a unit of its own, and waits for its result
#   do ID TURN HOLDER ROLE TASK ARG..   what that unit runs
#   tidy ROLLOUT.. -- DIGEST..   removes what no undo needs any more
#
# Answers are lines of fields with a tab between them, ended by `end` or by `error CODE WHY`: an answer without either
# was cut off. Arguments are data: none is ever evaluated, none becomes part of a program.
#
# Kadence's folder on a node, root's alone:
#   bin/node-<digest>.sh  this script, as the orders' units run it
#   staged/<digest>       files of releases      binaries/k3s-<version>-<digest>  binaries that were replaced
#   actions/<id>/         record of an action: order, boot, state (running, succeeded, failed), report, and its notes
#   backups/, cold/, files/   what was made for or brought from where Kadence runs
#   turn                  the highest turn that was obeyed, and its holder: orders with a lower one are refused, and those
#                         of another holder of the same one
#   lock                  held by the one action that is at work

set -u
umask 077
export LC_ALL=C TZ=UTC PATH="${PATH:-}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

BASE=/var/lib/kadence
# Digests and versions of files that have not changed since they were looked at. Gone with the next boot.
CACHE=/run/kadence
TAB=$(printf '\t')

# --- answers -----------------------------------------------------------------------------------------------------------

put() {
  local line="$1"
  shift
  while [ $# -gt 0 ]; do
    line="$line$TAB$1"
    shift
  done
  printf '%s\n' "$line"
}

# Ends with an error: one line, whatever the reason's text is.
fail() {
  put error "$1" "$(printf '%s' "$2" | tr '\n\t' '  ')"
  exit 1
}

has() { command -v "$1" > /dev/null 2>&1; }

# --- files -------------------------------------------------------------------------------------------------------------

# Makes what was written to a file or folder outlast a power cut.
flush() { sync "$@" 2> /dev/null || sync; }

# A small file that is there whole or not at all.
write() {
  printf '%s\n' "$2" > "$1.new" && flush "$1.new" && mv -f "$1.new" "$1" && flush "${1%/*}"
}

read_or() {
  if [ -r "$1" ]; then cat "$1"; else printf '%s' "${2:-}"; fi
}

size_of() { stat -L -c %s "$1" 2> /dev/null; }

# Changes with every write to the file, and with every change of its name: the time of the last change cannot be set, and
# is told in fractions of a second.
fingerprint() { stat -L -c '%d %i %s %y %z %n' "$1" 2> /dev/null; }

hash_file() { sha256sum < "$1" 2> /dev/null | cut -d ' ' -f 1; }

remember() { # KIND FINGERPRINT ANSWER
  mkdir -p "$CACHE/$1" 2> /dev/null || return 0
  local key
  key=$(printf '%s' "$2" | sha256sum | cut -c 1-32)
  printf '%s\n' "$3" > "$CACHE/$1/$key.$$" && mv -f "$CACHE/$1/$key.$$" "$CACHE/$1/$key"
}

recall() { # KIND FINGERPRINT
  [ -d "$CACHE/$1" ] || return 1
  local key
  key=$(printf '%s' "$2" | sha256sum | cut -c 1-32)
  [ -s "$CACHE/$1/$key" ] && cat "$CACHE/$1/$key"
}

# SHA-256 of a file, read again only if it changed since the last time. A change of a second ago could go unseen in the
# time stamps, so a young file's digest is not remembered.
digest() {
  local print known changed
  print=$(fingerprint "$1") || return 1
  recall digest "$print" && return
  known=$(hash_file "$1")
  [ -n "$known" ] || return 1
  changed=$(stat -L -c %Z "$1")
  if [ "$print" = "$(fingerprint "$1")" ] && [ $(($(date +%s) - changed)) -gt 1 ]; then
    remember digest "$print" "$known"
  fi
  printf '%s\n' "$known"
}

# What a K3s binary says its version is. Running it is slow, so this is remembered by its digest.
version_of() { # BINARY DIGEST
  local said
  recall version "$2" && return
  said=$("$1" --version 2> /dev/null | sed -n 's/^k3s version \([^ ]*\).*/\1/p')
  [ -n "$said" ] || return 1
  remember version "$2" "$said"
  printf '%s\n' "$said"
}

free_bytes() { df -Pk "$1" | awk 'NR == 2 { printf "%.0f", $4 * 1024 }'; }

# The first of these names that is a file.
first_of() {
  while [ $# -gt 0 ]; do
    if [ -f "$1" ]; then
      printf '%s\n' "$1"
      return
    fi
    shift
  done
}

same_disk() { [ "$(stat -L -c %d "$1")" = "$(stat -L -c %d "$2")" ]; }

folders() { mkdir -p "$BASE/bin" "$BASE/staged" "$BASE/binaries" "$BASE/actions" "$BASE/files" && chmod 700 "$BASE"; }

# --- K3s on this node --------------------------------------------------------------------------------------------------

# The units that start K3s: `role unit` a line. Their names are the installer's, which can be told another one.
k3s_units() {
  local unit start role
  for unit in $(systemctl list-unit-files --no-legend --no-pager 'k3s*.service' 2> /dev/null | cut -d ' ' -f 1); do
    start=$(systemctl show -p ExecStart --value "$unit" 2> /dev/null)
    case " $start " in
      *"k3s server "* | *"k3s-server "*) role=server ;;
      *"k3s agent "* | *"k3s-agent "*) role=agent ;;
      *) continue ;;
    esac
    printf '%s %s\n' "$role" "$unit"
  done
}

# The unit of a role: of several the one that runs, else the one that is enabled, else the first.
unit_of() {
  local role unit found=''
  while read -r role unit; do
    [ "$role" = "$1" ] || continue
    if systemctl -q is-active "$unit" || systemctl -q is-enabled "$unit" 2> /dev/null; then
      found=$unit
      break
    fi
    found=${found:-$unit}
  done << LIST
$(k3s_units)
LIST
  [ -n "$found" ] && printf '%s\n' "$found"
}

UNIT_PROPERTIES=Id,UnitFileState,ActiveState,SubState,NRestarts,MainPID,FragmentPath,DropInPaths,InvocationID
UNIT_PROPERTIES=$UNIT_PROPERTIES,ExecMainStartTimestampMonotonic,ExecMainStatus,Result

show() { systemctl show -p "$2" --value "$1" 2> /dev/null; }

unit_object() { busctl call org.freedesktop.systemd1 /org/freedesktop/systemd1 org.freedesktop.systemd1.Manager LoadUnit s "$1" 2> /dev/null | sed -n 's/^o "\(.*\)"$/\1/p'; }

# The words of the unit's ExecStart, exactly, each in double quotes as C would have it.
exec_words() {
  busctl get-property org.freedesktop.systemd1 "$(unit_object "$1")" org.freedesktop.systemd1.Service ExecStart 2> /dev/null \
    | sed -n 's/^a(sasbttttuii) 1 "[^"]*" [0-9]* \(".*"\) \(true\|false\) [0-9].*/\1/p'
}

environment_files() { systemctl show -p EnvironmentFiles --value "$1" 2> /dev/null | sed -n 's/ (ignore_errors=[a-z]*)$//p'; }

# The program that the unit starts.
binary_of() { systemctl show -p ExecStart --value "$1" 2> /dev/null | sed -n 's/^{ path=\([^ ;]*\) ;.*/\1/p'; }

# A value that is set in one of the places K3s looks at: command line, environment, configuration. Only for keys whose
# value is a path or a plain word.
setting() { # UNIT KEY VARIABLE
  local words value file
  words=$(exec_words "$1")
  value=$(printf '%s' "$words" | sed -n "s/.*\"--$2=\([^\"]*\)\".*/\1/p; s/.*\"--$2\" \"\([^\"]*\)\".*/\1/p" | head -n 1)
  if [ -z "$value" ] && [ -n "$3" ]; then
    for file in $(environment_files "$1"); do
      [ -r "$file" ] && value=$(sed -n "s/^$3=//p" "$file" | tail -n 1 | tr -d "\"'")
      [ -n "$value" ] && break
    done
  fi
  if [ -z "$value" ]; then
    for file in $(config_files "$1"); do
      value=$(sed -n "s/^[\"']\{0,1\}$2[\"']\{0,1\}:[[:space:]]*\([^#]*[^#[:space:]]\).*/\1/p" "$file" | tail -n 1 | tr -d "\"'")
    done
  fi
  printf '%s\n' "$value"
}

# K3s's configuration: the file and, in order, what lies in the folder beside it.
config_files() {
  local main file
  main=$(exec_words "$1" | sed -n 's/.*"--config=\([^"]*\)".*/\1/p; s/.*"--config" "\([^"]*\)".*/\1/p; s/.*"-c" "\([^"]*\)".*/\1/p' | head -n 1)
  for file in $(environment_files "$1"); do
    [ -z "$main" ] && [ -r "$file" ] && main=$(sed -n 's/^K3S_CONFIG_FILE=//p' "$file" | tail -n 1 | tr -d "\"'")
  done
  main=${main:-/etc/rancher/k3s/config.yaml}
  for file in "$main" "$main".d/*.yaml "$main".d/*.yml; do
    [ -f "$file" ] && printf '%s\n' "$file"
  done
}

data_dir() {
  local dir
  dir=$(setting "$1" data-dir K3S_DATA_DIR)
  [ -n "$dir" ] || dir=$(exec_words "$1" | sed -n 's/.*"-d" "\([^"]*\)".*/\1/p')
  printf '%s\n' "${dir:-/var/lib/rancher/k3s}"
}

# --- facts -------------------------------------------------------------------------------------------------------------

encoded() { base64 < "$1" | tr -d '\n'; }

identity() {
  put now "$(date +%s%N)"
  put hostname "$(cat /proc/sys/kernel/hostname)"
  put machine-id "$(read_or /etc/machine-id)"
  put boot-id "$(cat /proc/sys/kernel/random/boot_id)"
}

show_unit() {
  systemctl show -p "$UNIT_PROPERTIES" "$1" 2> /dev/null | while IFS='=' read -r key value; do put unit "$key" "$value"; done
}

# Whose unit is this node's K3s: `role unit`. Server wins where both could: a server also is an agent.
chosen_unit() {
  local units role unit first=''
  units=$(k3s_units)
  [ -n "$units" ] || return 1
  while read -r role unit; do
    if systemctl -q is-active "$unit" || [ "$(show "$unit" SubState)" = auto-restart ]; then
      printf '%s %s\n' "$role" "$unit"
      return
    fi
    systemctl -q is-enabled "$unit" 2> /dev/null && [ -z "$first" ] && first="$role $unit"
  done << LIST
$units
LIST
  [ -n "$first" ] || first=$(printf '%s\n' "$units" | sort -r | head -n 1)
  printf '%s\n' "$first"
}

arguments() { # UNIT
  local file words
  words=$(exec_words "$1")
  if [ -n "$words" ]; then
    put exec "$(printf '%s' "$words" | base64 | tr -d '\n')"
  else
    put no-exec "busctl did not tell the unit's ExecStart"
  fi
  systemctl show -p Environment --value "$1" 2> /dev/null | tr ' ' '\n' | grep '^K3S_' | while IFS= read -r line; do
    put env "$(show "$1" FragmentPath)" "$(printf '%s\n' "$line" | base64 | tr -d '\n')"
  done
  for file in $(environment_files "$1"); do
    [ -f "$file" ] || continue
    if [ "$(size_of "$file")" -gt 262144 ]; then put unreadable "$file" 'more than 256 kB'; else put env "$file" "$(encoded "$file")"; fi
  done
  for file in $(config_files "$1"); do
    if [ "$(size_of "$file")" -gt 262144 ]; then put unreadable "$file" 'more than 256 kB'; else put config "$file" "$(encoded "$file")"; fi
  done
}

# A GET of a local address, with curl or else with the kubectl that every K3s has.
local_get() { # URL
  if has curl; then
    curl --silent --max-time 3 --noproxy '*' "$1" 2> /dev/null
  else
    "$BINARY" kubectl --kubeconfig /dev/null --server "${1%"${1#http://*/}"}" --request-timeout 3s get --raw "/${1#http://*/}" 2> /dev/null
  fi
}

ETCD_METRICS='^(etcd_server_(has_leader|is_leader|is_learner|id|version|quota_backend_bytes|proposals_applied_total)|etcd_mvcc_db_total_size_in_bytes|etcd_disk_wal_fsync_duration_seconds_(bucket|count))[{ ]'

# What the etcd member here says of itself. Nothing but these facts: the whole list of metrics is long.
etcd_health() { put etcd-health "$(local_get http://127.0.0.1:2381/health | tr -d '\n\t')"; }

etcd_metrics() {
  put etcd-metrics
  local_get http://127.0.0.1:2381/metrics | grep -E "$ETCD_METRICS" | sed "s/^/etcd-metric$TAB/"
}

# The membership as etcd lists it, from its own port for HTTP with its client certificate; where a K3s has not got that
# port, from the supervisor, which asks etcd. The token goes by stdin: a command line can be read by everybody.
etcd_members() { # DATA_DIR
  local password port answer='' tls="$1/server/tls"
  if has curl; then
    answer=$(curl --silent --fail --http1.1 --max-time 5 --noproxy '*' --cacert "$tls/etcd/server-ca.crt" --cert "$tls/etcd/client.crt" \
      --key "$tls/etcd/client.key" --data '{}' https://127.0.0.1:2382/v3/cluster/member/list 2> /dev/null)
  fi
  if [ -z "$answer" ]; then
    port=$(supervisor_port)
    password=$(sed 's/^.*:://; s/^server://; s/["\\]/\\&/g' "$1/server/token" 2> /dev/null)
    if has curl; then
      answer=$(printf 'user = "server:%s"\n' "$password" \
        | curl --silent --fail --config - --max-time 5 --noproxy '*' --cacert "$tls/server-ca.crt" "https://127.0.0.1:$port/db/info" 2> /dev/null)
    else
      answer=$("$BINARY" kubectl --kubeconfig /dev/stdin --request-timeout 5s get --raw /db/info 2> /dev/null << CONFIG
{"apiVersion": "v1", "kind": "Config", "current-context": "k", "contexts": [{"name": "k", "context": {"cluster": "k", "user": "k"}}],
 "clusters": [{"name": "k", "cluster": {"server": "https://127.0.0.1:$port", "certificate-authority": "$tls/server-ca.crt"}}],
 "users": [{"name": "k", "user": {"username": "server", "password": "$password"}}]}
CONFIG
      )
    fi
  fi
  if [ -n "$answer" ]; then
    put etcd-members "$(printf '%s' "$answer" | tr -d '\n\t')"
  else
    put etcd-no-members "neither etcd on 127.0.0.1:2382 nor K3s on 127.0.0.1:$port told the members"
  fi
}

supervisor_port() {
  local port
  port=$(setting "$UNIT" supervisor-port '')
  [ -n "$port" ] || port=$(setting "$UNIT" https-listen-port '')
  printf '%s\n' "${port:-6443}"
}

# Which embedded datastore lies here. etcd on the disk wins over everything that K3s is told.
datastore() { # DATA_DIR
  if [ -d "$1/server/db/etcd/member" ]; then
    echo etcd
  elif [ -f "$1/server/db/state.db" ]; then
    echo sqlite
  fi
}

common_facts() {
  local chosen
  identity
  BINARY='' UNIT='' ROLE='' DATA=''
  if ! has systemctl; then
    put no-install 'systemd is not here: Kadence knows K3s as a systemd unit only'
    return
  fi
  chosen=$(chosen_unit) || {
    put no-install "no systemd unit k3s*.service starts \`k3s server\` or \`k3s agent\`"
    return
  }
  ROLE=${chosen%% *} UNIT=${chosen#* }
  BINARY=$(binary_of "$UNIT") DATA=$(data_dir "$UNIT")
  put role "$ROLE"
  show_unit "$UNIT"
  put binary "$BINARY"
  put data-dir "$DATA"
  put digest "$(digest "$BINARY")"
  put size "$(size_of "$BINARY")"
  arguments "$UNIT"
  put datastore "$(datastore "$DATA")"
  if [ "$ROLE" = server ] && [ "$(datastore "$DATA")" = etcd ]; then
    etcd_health
    etcd_metrics
    etcd_members "$DATA"
  fi
}

glance() {
  common_facts
  [ -z "$UNIT" ] || put process "$(running_version)"
  put end
}

facts() {
  local file dir other_role other version records
  common_facts
  # Takes K3s a third of a second; its one line cannot be torn apart by others.
  [ "$ROLE" != server ] || secrets_encryption &
  put arch "$(uname -m)"
  if [ -f /sys/fs/cgroup/cgroup.controllers ]; then put cgroup v2; else put cgroup v1; fi
  if has timedatectl; then put ntp "$(timedatectl show -p NTPSynchronized --value 2> /dev/null)"; fi
  for file in systemd-run sqlite3 python3 restorecon curl flock; do has "$file" && put tool "$file"; done
  [ -r /sys/fs/selinux/enforce ] && put selinux "$(cat /sys/fs/selinux/enforce)"
  put turn "$(turn_obeyed)"
  if [ -d "$BASE/actions" ]; then
    records=$(ls -tr "$BASE/actions")
    for file in $records; do put record "$file" "$(record_state "$file")"; done
  fi

  addresses
  if [ -n "$UNIT" ]; then
    if version=$(version_of "$BINARY" "$(digest "$BINARY")"); then put version "$version"; fi
    while read -r other_role other; do
      [ "$other_role" != "$ROLE" ] && systemctl -q is-enabled "$other" 2> /dev/null && put other-unit "$other"
    done << LIST
$(k3s_units)
LIST
    start_files "$UNIT"
    for file in config.toml.tmpl config-v3.toml.tmpl; do
      [ -f "$DATA/agent/etc/containerd/$file" ] && put template "$DATA/agent/etc/containerd/$file"
    done
    if [ "$ROLE" = server ]; then
      # The token leaves this node only inside SSH, is hashed with Kadence's key as it arrives, and forgotten.
      [ -r "$DATA/server/token" ] && put token "$(encoded "$DATA/server/token")"
      if [ "$(datastore "$DATA")" = sqlite ]; then
        put sqlite "$DATA/server/db/state.db" "$(size_of "$DATA/server/db/state.db")" "$(size_of "$DATA/server/db/state.db-wal" || echo 0)"
      fi
    fi
    # One process for all certificates; a path of K3s's has no colon.
    (
      set -- "$DATA"/server/tls/*.crt "$DATA"/server/tls/etcd/*.crt "$DATA"/agent/*.crt
      for file in "$@"; do
        [ -f "$file" ] && grep -H '' "$@" /dev/null 2> /dev/null | sed "s/^/pem$TAB/" && break
      done
    )
  fi

  for dir in "data:${DATA:-/var/lib}" "binary:${BINARY:-/usr/local/bin/k3s}" "kadence:$BASE"; do
    file=${dir#*:}
    while [ ! -d "$file" ]; do file=${file%/*} file=${file:-/}; done
    # The last of each: a long device name takes a line of its own only without -P.
    put disk "${dir%%:*}" "$(df -Pk "$file" | tail -n 1 | tr -s ' ')" "$(df -Pi "$file" | tail -n 1 | tr -s ' ')"
  done
  wait
  put end
}

# What the next start of K3s reads, with the times at which its contents, and its contents, name or rights, last changed.
start_files() { # UNIT
  local file registries
  put time "$(date +%s%N)" "$(cut -d ' ' -f 1 /proc/uptime)"
  put daemon-reload "$(show "$1" NeedDaemonReload)"
  registries=$(setting "$1" private-registry '')
  # shellcheck disable=SC2046 # paths of units have no blanks: systemd escapes them
  for file in $(show "$1" FragmentPath) $(show "$1" DropInPaths) $(environment_files "$1") $(config_files "$1") \
    "${registries:-/etc/rancher/k3s/registries.yaml}" "$DATA"/agent/etc/containerd/*.tmpl; do
    [ -f "$file" ] && put start-file "$file" "$(stat -L -c %Y "$file")" "$(stat -L -c %Z "$file")"
  done
}

# The interfaces of the default routes, in the kernel's order, and every address that others can reach, of each interface.
addresses() {
  local ip
  if has ip; then ip=ip; else ip=$(first_of "$DATA/data/current/bin/ip" "$DATA/data/current/bin/aux/ip"); fi
  [ -n "$ip" ] || return 0
  awk -v OFS="$TAB" '$2 == "00000000" && $8 == "00000000" { print "default-route", $1 }' /proc/net/route
  [ -r /proc/net/ipv6_route ] && awk -v OFS="$TAB" '$1 ~ /^0+$/ && $2 == "00" && $10 != "lo" { print "default-route", $10 }' /proc/net/ipv6_route
  "$ip" -o addr show scope global | awk -v OFS="$TAB" '$3 ~ /^inet6?$/ { sub("/.*", "", $4); print "address", $2, $4 }'
  put addresses-end
}

secrets_encryption() {
  if [ ! -e "$DATA/server/cred/encryption-config.json" ]; then
    put no-encryption
    return
  fi
  local answer
  answer=$(timeout 10 "$BINARY" secrets-encrypt status --data-dir "$DATA" --output json 2> /dev/null | tr -d '\n\t')
  put encryption "$answer"
}

# --- follow ------------------------------------------------------------------------------------------------------------

follow() { # ROLE SECS PATTERN..
  local role="$1" until unit last='' now etcd='' tick=0 pattern
  until=$(($(date +%s) + $2))
  shift 2
  unit=$(unit_of "$role") || fail no-unit "no systemd unit k3s*.service starts \`k3s $role\`"
  BINARY=$(binary_of "$unit") DATA=$(data_dir "$unit") UNIT=$unit

  # Everything started here ends with this shell, and this shell with whoever listens: when stdin ends, when a line
  # cannot be written, when the time is over.
  exec 3<&0
  trap 'trap - EXIT TERM; kill 0' EXIT
  trap 'exit 0' TERM HUP INT PIPE
  (cat <&3 > /dev/null; kill "$$") &
  if has journalctl && [ $# -gt 0 ]; then
    now=$(since_restart "$unit")
    for pattern in "$@"; do
      set -- "$@" -e "$pattern"
      shift
    done
    journalctl -q -f -o cat -u "$unit" --since "${now:-now}" 2> /dev/null | grep --line-buffered -F "$@" \
      | while IFS= read -r now; do printf 'journal\t%.2000s\n' "$now" || exit; done &
  fi

  while [ "$(date +%s)" -lt "$until" ]; do
    now=$(systemctl show -p "$UNIT_PROPERTIES" "$unit")
    if [ "$now" != "$last" ]; then
      last=$now
      printf '%s\n' "$now" | while IFS='=' read -r key value; do put unit "$key" "$value"; done
      put time "$(date +%s%N)" "$(cut -d ' ' -f 1 /proc/uptime)"
      if restart_is_due "$(printf '%s\n' "$now" | sed -n 's/^InvocationID=//p')"; then put restart-due; else put process "$(running_version)"; fi
      put unit-end
    fi
    # Asked anew until it is there: a server that joins again has no data of etcd yet when it starts.
    [ -n "$etcd" ] || [ "$role" != server ] || [ "$(datastore "$DATA")" != etcd ] || etcd=yes
    if [ -n "$etcd" ]; then
      etcd_health
      # Who leads and who has caught up changes seldom; asking costs more than the health does.
      [ $((tick % 4)) -eq 0 ] && etcd_metrics
      put etcd-end
    fi
    put tick || exit
    tick=$((tick + 1))
    sleep 0.2 || sleep 1
  done
  fail over 'followed for as long as was asked for'
}

# From when on the journal speaks of this start: a restart that was only just asked for has not begun, and the unit's own
# time is still that of the start before, whose lines name other causes.
since_restart() { # UNIT
  local began asked
  began=$(date -d "$(show "$1" InactiveExitTimestamp)" +%s 2> /dev/null || echo 0)
  for asked in "$BASE"/actions/*/asked; do
    [ -f "$asked" ] || continue
    asked=$(stat -c %Y "$asked")
    [ "$asked" -le "$began" ] || began=$asked
  done
  if [ "$began" = 0 ]; then echo now; else echo "@$began"; fi
}

# Whether what runs is what a restart that was asked for has yet to end: systemd is asked without waiting.
restart_is_due() { # INVOCATION
  local now asked
  now="$(cat /proc/sys/kernel/random/boot_id) $1"
  for asked in "$BASE"/actions/*/asked; do
    [ "$(read_or "$asked")" != "$now" ] || return 0
  done
  return 1
}

# The version of the process that runs now: of the file it was started from, as long as that can be told.
running_version() {
  local pid exe print
  pid=$(show "$UNIT" MainPID)
  [ "${pid:-0}" != 0 ] || return
  exe=/proc/$pid/exe
  # A packaged K3s runs from a folder that its binary unpacked: `<data>/data/<hash>/bin/k3s`.
  print=$(fingerprint "$exe" | sed 's/ [^ ]*$//')
  [ -n "$print" ] || return
  if [ "$print" = "$(fingerprint "$BINARY" | sed 's/ [^ ]*$//')" ]; then
    version_of "$BINARY" "$(digest "$BINARY")"
  else
    version_of "$exe" "$print"
  fi
}

# --- files from and to where Kadence runs ------------------------------------------------------------------------------

# Where files of releases are staged: on the disk of the binary, so that they can be put in its place by a rename.
stage_dir() {
  local chosen dir
  dir=$BASE/staged
  if chosen=$(chosen_unit); then
    chosen=$(binary_of "${chosen#* }")
    chosen=$(readlink -f "$chosen")
    chosen=${chosen%/*}
    if [ -d "$chosen" ] && ! same_disk "$chosen" "$BASE"; then
      dir=$chosen/.kadence
      mkdir -p "$dir" && chmod 700 "$dir" || return 1
    fi
  fi
  printf '%s\n' "$dir"
}

images_dir() {
  local chosen
  chosen=$(chosen_unit) || return 1
  printf '%s/agent/images\n' "$(data_dir "${chosen#* }")"
}

receive() { # KIND NAME DIGEST BYTES
  local dir path part left found kept
  folders || fail folder "$BASE cannot be made: $(mkdir -p "$BASE" 2>&1)"
  case $1 in
    binary) dir=$(stage_dir) ;;
    images) dir=$(images_dir) && mkdir -p "$dir" ;;
    file) dir=$BASE/files ;;
    *) fail usage "no such kind of file: $1" ;;
  esac || fail folder 'there is no place for the file'
  path=$dir/$2 part=$dir/.$2.part
  if [ "$1" = binary ]; then
    # A binary that was kept when it was replaced need not be sent again: a way back finds it there.
    for kept in "$BASE/binaries"/k3s-*-"$(printf '%.12s' "$3")"; do
      [ ! -f "$kept" ] || [ "$(digest "$kept")" != "$3" ] || path=$kept
    done
  fi
  if [ -f "$path" ] && [ "$(digest "$path")" = "$3" ]; then
    put have "$path"
    put end
    return
  fi
  left=$(free_bytes "$dir")
  [ "${left:-0}" -gt "$4" ] || fail disk-full "$dir has $left bytes free, $4 are needed"
  put send
  # Nobody wants a half of an earlier try.
  rm -f "$part"
  if ! cat > "$part"; then
    left=$(free_bytes "$dir")
    found=$(size_of "$part")
    rm -f "$part"
    [ "${left:-0}" -gt 1048576 ] || fail disk-full "$dir became full after ${found:-0} of $4 bytes"
    fail write "writing $part failed after ${found:-0} of $4 bytes"
  fi
  found=$(size_of "$part")
  if [ "$found" != "$4" ]; then
    rm -f "$part"
    fail truncated "only $found of $4 bytes of $2 arrived"
  fi
  found=$(hash_file "$part")
  if [ "$found" != "$3" ]; then
    rm -f "$part"
    put digest-mismatch "$path" "$3" "$found"
    fail digest "$path has digest $found instead of $3"
  fi
  [ "$1" != binary ] || chmod 755 "$part"
  flush "$part"
  mv -f "$part" "$path" || fail write "$path could not be put in place"
  flush "$dir"
  # The rename changed the time stamp: the digest is known all the same, and nobody else writes here.
  remember digest "$(fingerprint "$path")" "$3"
  put stored "$path"
  put end
}

send() { # PATH
  [ -f "$1" ] || fail no-file "$1 is not there"
  put size "$(size_of "$1")"
  cat "$1"
}

# --- orders ------------------------------------------------------------------------------------------------------------

record_of() { printf '%s/actions/%s\n' "$BASE" "$1"; }

at_work() { systemctl -q is-active "kadence-$1.service" || [ "$(show "kadence-$1.service" ActiveState)" = activating ]; }

# running, succeeded, failed; interrupted: begun, and neither at work nor finished.
record_state() {
  local state
  state=$(read_or "$(record_of "$1")/state" none)
  if [ "$state" = running ] && ! at_work "$1"; then
    # It may have finished in between.
    state=$(read_or "$(record_of "$1")/state" none)
    [ "$state" = running ] && state=interrupted
  fi
  printf '%s\n' "$state"
}

tell_result() {
  local record
  record=$(record_of "$1")
  cat "$record/report" 2> /dev/null
  if [ "$(cat "$record/state")" = succeeded ]; then
    put end
  else
    put error "$(read_or "$record/code" failed)" "$(read_or "$record/why" 'no reason was left')"
    exit 1
  fi
}

order() { # ID TURN HOLDER SECS ROLE TASK ARG..
  local id="$1" turn="$2" holder="$3" until record script state said beat=0
  until=$(($(date +%s) + $4))
  case $id in '' | .* | *[!A-Za-z0-9._-]*) fail usage "not an id: $id" ;; esac
  case $holder in '' | *[!A-Za-z0-9._-]*) fail usage "not the holder of a turn: $holder" ;; esac
  has systemd-run || fail no-systemd 'systemd-run is not here: an order cannot outlive its connection'
  has flock || fail no-flock 'flock (util-linux) is not here: two actions could run at once'
  folders || fail folder "$BASE cannot be made: $(mkdir -p "$BASE" 2>&1)"
  record=$(record_of "$id")
  state=$(record_state "$id")
  case $state in
    succeeded | failed)
      [ "$state" = failed ] || put already
      tell_result "$id"
      return
      ;;
    none | interrupted)
      # Looked at again under the lock; here it keeps a refused order from leaving anything behind.
      check_turn "$turn" "$holder"
      script=$BASE/bin/node-$SELF.sh
      if [ ! -f "$script" ]; then
        if ! printf '%s' "$SELF_TEXT" | base64 -d > "$script.$$"; then fail disk-full "$script could not be written"; fi
        chmod 700 "$script.$$"
        flush "$script.$$"
        mv -f "$script.$$" "$script"
      fi
      [ "$(hash_file "$script" | cut -c 1-12)" = "$SELF" ] || fail script "$script is not what it should be"
      shift 4
      if ! said=$(systemd-run --quiet --no-block --collect --unit="kadence-$id" --description="Kadence: $2 ($id)" \
        --property=Type=oneshot --property=KillMode=control-group --property=TimeoutStartSec=infinity \
        /bin/sh "$script" "do" "$id" "$turn" "$holder" "$@" 2>&1); then
        # The same order came in at the same time by another connection: its unit is there.
        at_work "$id" || [ -f "$record/state" ] || fail start "systemd-run: $said"
      fi
      ;;
  esac

  # Waiting is looking: the record is what counts, and it outlives this connection.
  while :; do
    state=$(read_or "$record/state" none)
    case $state in succeeded | failed) break ;; esac
    if [ $((beat % 20)) -eq 0 ]; then
      put tick || exit
      [ "$(date +%s)" -lt "$until" ] || fail waiting "the order $id is still being performed"
      if [ "$beat" -gt 0 ] && ! at_work "$id"; then
        state=$(read_or "$record/state" none)
        case $state in
          succeeded | failed) break ;;
          none) fail start "the unit kadence-$id ended before it began: $(refusal "$id")" ;;
          *) fail interrupted "the unit kadence-$id ended in the middle of its work" ;;
        esac
      fi
    fi
    beat=$((beat + 1))
    sleep 0.05 || sleep 1
  done
  tell_result "$id"
}

refusal() { journalctl -q -o cat -n 1 -u "kadence-$1" 2> /dev/null; }

turn_obeyed() {
  local obeyed
  obeyed=$(read_or "$BASE/turn" 0)
  printf '%s\n' "${obeyed%% *}"
}

# States of Kadence know nothing of each other, and may hand out the same number: then the first who came is obeyed.
may_act() { # TURN HOLDER
  [ "$1" -gt "$(turn_obeyed)" ] || [ "$(read_or "$BASE/turn")" = "$1 $2" ]
}

check_turn() { # TURN HOLDER
  may_act "$1" "$2" || {
    put turn "$(turn_obeyed)"
    fail superseded "this node obeys turn $(turn_obeyed) of another Kadence, the order has turn $1"
  }
}

# --- performing a task: runs in a unit of its own ----------------------------------------------------------------------

note() { write "$RECORD/$1" "${2:-$BOOT}"; }
noted() { [ -f "$RECORD/$1" ]; }

report() { put "$@" >> "$RECORD/report"; }

give_up() { # CODE WHY
  write "$RECORD/code" "$1"
  write "$RECORD/why" "$(printf '%s' "$2" | tr '\n\t' '  ' | cut -c 1-2000)"
  flush "$RECORD/report" 2> /dev/null
  write "$RECORD/state" failed
  put error "$1" "$2"
  exit 1
}

# Gives up for the disk if that is why, else with the given code.
give_up_write() { # FOLDER CODE WHY
  local left
  left=$(free_bytes "$1")
  [ "${left:-0}" -gt 1048576 ] || give_up disk-full "$1 has ${left:-no} bytes free: $3"
  give_up "$2" "$3"
}

perform() { # ID TURN HOLDER ROLE TASK ARG..
  ID=$1 TURN=$2 HOLDER=$3 ROLE=$4 TASK=$5
  shift 5
  RECORD=$(record_of "$ID") BOOT=$(cat /proc/sys/kernel/random/boot_id)
  exec 9> "$BASE/lock"
  # Another action of ours that is ending has a moment; more than one at once there must not be.
  # No result is left then: the order may be given again.
  flock -w 30 9 || fail busy 'another action is at work on this node'
  case $(read_or "$RECORD/state" none) in succeeded | failed) return ;; esac
  if ! may_act "$TURN" "$HOLDER"; then
    mkdir -p "$RECORD" && report turn "$(turn_obeyed)"
    give_up superseded "this node obeys turn $(turn_obeyed) of another Kadence, the order has turn $TURN"
  fi
  [ "$TURN" -eq "$(turn_obeyed)" ] || write "$BASE/turn" "$TURN $HOLDER" || exit 1
  mkdir -p "$RECORD" && flush "$BASE/actions"
  : > "$RECORD/report"
  noted boot && put again "begun before, in boot $(cat "$RECORD/boot")"
  write "$RECORD/order" "$(put "$TURN" "$ROLE" "$TASK" "$@")"
  write "$RECORD/boot" "$BOOT"
  write "$RECORD/state" running || exit 1
  # A flaw in this script is a failure, too. The end of the host is not: then the task is taken up again.
  SECRET=''
  trap 'trap - EXIT; forget; exit 143' TERM INT HUP
  trap 'forget; [ "$(cat "$RECORD/state")" != running ] || give_up script "the script ended in the middle of $TASK: $(refusal "$ID")"' EXIT

  UNIT=$(unit_of "$ROLE") || give_up no-unit "no systemd unit k3s*.service starts \`k3s $ROLE\`"
  BINARY=$(readlink -f "$(binary_of "$UNIT")") || give_up no-binary "$UNIT starts no file that exists"
  DATA=$(data_dir "$UNIT") DB=$DATA/server/db
  case $TASK in
    swap) swap "$@" ;;
    place) place "$@" ;;
    etcd-snapshot) etcd_snapshot "$@" ;;
    sqlite-backup) sqlite_backup "$@" ;;
    sqlite-stopped-copy) sqlite_stopped_copy ;;
    archive) archive ;;
    stop) stop ;;
    start) start ;;
    restart) restart ;;
    etcd-reset) etcd_reset "$@" ;;
    set-etcd-aside) set_etcd_aside ;;
    sqlite-restore) sqlite_restore "$@" ;;
    prune-snapshots) prune_snapshots "$@" ;;
    *) give_up usage "no such task: $TASK" ;;
  esac
  flush "$RECORD/report"
  write "$RECORD/state" succeeded
}

# Removes the file with a secret that the task has made, if it has.
forget() { [ -z "$SECRET" ] || rm -f "$SECRET"; }

# A file with this digest among what was staged or kept; read again unless it is as it was when it was verified.
find_artifact() { # DIGEST
  local file found wrong=''
  for file in "$BASE/staged/$1" "${BINARY%/*}/.kadence/$1" "$BASE/binaries"/k3s-*-"$(printf '%.12s' "$1")"; do
    [ -f "$file" ] || continue
    found=$(digest "$file")
    if [ "$found" = "$1" ]; then
      printf '%s\n' "$file"
      return
    fi
    wrong=$found
  done
  if [ -n "$wrong" ]; then
    report digest-mismatch "staged binary $(printf '%.12s' "$1")" "$1" "$wrong"
    return 2
  fi
  return 1
}

# Puts the artifact in the binary's place; what was there is kept first. Sets RENAMED if it was not there already.
exchange() { # VERSION ARTIFACT EXPECT cold|warm
  local installed source kept old ready status=0
  RENAMED=''
  installed=$(digest "$BINARY") || give_up no-binary "$BINARY cannot be read"
  if [ "$installed" = "$2" ]; then
    kept=$(first_of "$BASE/binaries"/k3s-*-"$(printf '%.12s' "$3")")
    [ -z "$kept" ] || report kept "$kept"
    return
  fi
  if [ "$installed" != "$3" ]; then
    report digest-mismatch "$BINARY" "$3" "$installed"
    give_up digest "$BINARY has digest $installed instead of $3: somebody else replaced it"
  fi
  source=$(find_artifact "$2") || status=$?
  case $status in
    0) ;;
    2) give_up digest "the staged binary is not the one that was verified" ;;
    *) give_up not-staged "no binary with digest $2 is on this node" ;;
  esac

  old=$(version_of "$BINARY" "$installed") || old=unknown
  kept=$BASE/binaries/k3s-$old-$(printf '%.12s' "$installed")
  if [ ! -f "$kept" ]; then
    if ln "$BINARY" "$kept" 2> /dev/null; then
      # A second name for the file that was just looked at; after the rename below it is the only one.
      remember digest "$(fingerprint "$kept")" "$installed"
    elif cp -p "$BINARY" "$kept.part"; then
      flush "$kept.part"
      mv -f "$kept.part" "$kept"
    else
      rm -f "$kept.part"
      give_up_write "$BASE" write "the installed binary could not be kept as $kept"
    fi
    flush "$BASE/binaries"
  fi
  [ "$(digest "$kept")" = "$installed" ] || give_up digest "$kept is not a copy of $BINARY"
  report kept "$kept"

  if [ "$4" = cold ]; then cold_copy; fi

  ready=${BINARY%/*}/.k3s-kadence-$ID
  rm -f "$ready"
  if ! ln "$source" "$ready" 2> /dev/null; then
    if ! cp "$source" "$ready"; then
      rm -f "$ready"
      recover
      give_up_write "${BINARY%/*}" write "$ready could not be written"
    fi
    if [ "$(hash_file "$ready")" != "$2" ]; then
      rm -f "$ready"
      recover
      give_up digest "the copy $ready is not what was staged"
    fi
  fi
  chown 0:0 "$ready"
  chmod 755 "$ready"
  # The label that the installed file has, before it gets that file's name; then what the policy says of that name.
  if [ -r /sys/fs/selinux/enforce ]; then chcon --reference="$BINARY" "$ready" 2> /dev/null; fi
  flush "$ready"
  if ! mv -f "$ready" "$BINARY"; then
    recover
    give_up write "$BINARY could not be replaced"
  fi
  flush "${BINARY%/*}"
  note renamed
  RENAMED=yes
  if has restorecon; then restorecon "$BINARY" 2> /dev/null; fi
  # No second name stays that somebody's copy over the installed file could spoil.
  case $source in "$BASE"/binaries/*) ;; *) rm -f "$source" ;; esac
  remember digest "$(fingerprint "$BINARY")" "$2"
  remember version "$2" "$1"
}

# When something went wrong between stop and start, K3s comes back as it was.
recover() {
  if noted cold && ! systemctl -q is-active "$UNIT"; then systemctl --no-block start "$UNIT"; fi
}

# Stops K3s and copies its database. A copy from an earlier try is good only if K3s has not run since.
cold_copy() {
  local cold="$BASE/cold/$ID" file need
  if [ "$(read_or "$RECORD/cold")" = "$BOOT" ] && ! running; then return; fi
  [ -f "$DB/state.db" ] || give_up no-database "$DB/state.db is not there"
  need=$(du -sk "$DB/state.db" | cut -f 1)
  [ "$(free_bytes "$BASE")" -gt $((need * 2048)) ] || give_up disk-full "$BASE has too little room for a cold copy of $need kB"
  note cold begun
  systemctl stop "$UNIT"
  systemctl -q is-active "$UNIT" && { recover; give_up still-running "$UNIT does not stop"; }
  rm -rf "$cold" && mkdir -p "$cold"
  # Without the index of the log: whoever opens the copy makes it anew.
  for file in state.db state.db-wal; do
    [ -f "$DB/$file" ] || continue
    if ! cp -p "$DB/$file" "$cold/$file"; then
      rm -rf "$cold"
      recover
      give_up_write "$BASE" write "$DB/$file could not be copied"
    fi
    flush "$cold/$file"
  done
  flush "$cold"
  note cold
}

# Tells of the cold copy, and of what is in it where something here can read it. K3s runs meanwhile, or starts. What the
# log holds comes into the database then: the copy is one file afterwards.
report_cold_copy() {
  local cold="$BASE/cold/$ID" said='' file bytes=0
  if has sqlite3; then
    said=$(printf 'integrity\t%s\nrevision\t%s' "$(sqlite3 "$cold/state.db" 'PRAGMA integrity_check' 2>&1 | head -n 1)" \
      "$(sqlite3 "$cold/state.db" 'SELECT max(id) FROM kine' 2>&1 | head -n 1)")
  elif has python3; then
    said=$(python3 - "$cold/state.db" 2>&1 << 'PYTHON'
import sqlite3, sys
copy = sqlite3.connect(sys.argv[1])
print("integrity", copy.execute("PRAGMA integrity_check").fetchone()[0], sep="\t")
print("revision", copy.execute("SELECT max(id) FROM kine").fetchone()[0], sep="\t")
copy.close()
PYTHON
    ) || said="integrity$TAB$(printf '%s' "$said" | tail -n 1)"
  fi
  [ -z "$said" ] || printf '%s\n' "$said" >> "$RECORD/report"
  flush "$cold"/* "$cold"
  for file in "$cold"/*; do bytes=$((bytes + $(size_of "$file"))); done
  report cold-copy "$cold" "$bytes" "$(copy_digest "$cold")"
}

# SHA-256 of a file; of a folder with SQLite's files that of their list, so that one that is missing counts.
copy_digest() { # PATH
  local file
  if [ ! -d "$1" ]; then
    hash_file "$1"
    return
  fi
  for file in state.db state.db-wal; do
    [ ! -f "$1/$file" ] || printf '%s  %s\n' "$(hash_file "$1/$file")" "$file"
  done | sha256sum | cut -d ' ' -f 1
}

# Gives up unless the copy is what it was when it was read.
same_copy() { # PATH DIGEST
  local found
  found=$(copy_digest "$1")
  [ "$found" = "$2" ] && return
  report digest-mismatch "$1" "$2" "$found"
  give_up digest "$1 has digest $found instead of $2: it is not what was copied"
}

swap() { # VERSION ARTIFACT EXPECT cold|warm
  exchange "$@"
  restart_changed
  ! noted cold || report_cold_copy
}

# Restarts K3s with the binary that is in place now, once.
restart_changed() {
  local asked
  asked=$(read_or "$RECORD/asked")
  if [ -z "$RENAMED" ]; then
    report already
    # Does what runs come from the file that is there? What was started after the name changed does.
    if [ -n "$asked" ]; then
      # Asked for in this boot, and systemd has begun another run since: that is the one.
      if [ "${asked%% *}" != "$BOOT" ] || [ "${asked#* }" != "$(show "$UNIT" InvocationID)" ]; then
        systemctl --no-block start "$UNIT"
        return
      fi
    elif noted renamed; then
      # Renamed, but the restart was never asked for. After a boot K3s was started from the new file.
      if [ "$(cat "$RECORD/renamed")" != "$BOOT" ]; then
        systemctl --no-block start "$UNIT"
        return
      fi
    elif [ "$(started_at)" -gt "$(stat -L -c %Z "$BINARY")" ]; then
      return
    fi
  fi
  note asked "$BOOT $(show "$UNIT" InvocationID)"
  systemctl --no-block restart "$UNIT" || give_up restart "systemd did not take the restart of $UNIT"
}

# When the main process was started, in seconds since 1970; 0 if none runs.
started_at() {
  local pid start
  pid=$(show "$UNIT" MainPID)
  if [ "${pid:-0}" = 0 ]; then
    echo 0
    return
  fi
  start=$(show "$UNIT" ExecMainStartTimestampMonotonic)
  awk -v now="$(date +%s)" -v start="$start" '{ printf "%d\n", now - $1 + start / 1000000 }' /proc/uptime
}

place() { # VERSION ARTIFACT EXPECT ..
  ! running || give_up still-running "$UNIT runs: its binary is replaced only while it is stopped"
  exchange "$1" "$2" "$3" warm
  [ -n "$RENAMED" ] || report already
}

running() { [ "$(show "$UNIT" MainPID)" != 0 ] || systemctl -q is-active "$UNIT"; }

start() {
  systemctl -q enable "$UNIT" || give_up enable "$UNIT could not be enabled"
  ! running || report already
  systemctl --no-block start "$UNIT" || give_up start "systemd did not take the start of $UNIT"
}

restart() {
  local asked
  asked=$(read_or "$RECORD/asked")
  if [ -n "$asked" ] && { [ "${asked%% *}" != "$BOOT" ] || [ "${asked#* }" != "$(show "$UNIT" InvocationID)" ]; }; then
    report already
    return
  fi
  note asked "$BOOT $(show "$UNIT" InvocationID)"
  systemctl --no-block restart "$UNIT" || give_up restart "systemd did not take the restart of $UNIT"
}

# Processes that are K3s or etcd. Containers' shims go on, and so may somebody's `k3s kubectl`.
k3s_processes() {
  local pid title exe
  for pid in /proc/[0-9]*; do
    exe=$(readlink "$pid/exe" 2> /dev/null) || continue
    case ${exe% (deleted)} in
      "$BINARY" | "$DATA"/data/*/bin/k3s*) ;;
      */etcd) echo "${pid#/proc/}"; continue ;;
      *) continue ;;
    esac
    title=$(tr '\0' ' ' < "$pid/cmdline" 2> /dev/null)
    case $title in *"k3s server"* | *"k3s agent"* | *k3s-server* | *k3s-agent* | *"k3s init"*) echo "${pid#/proc/}" ;; esac
  done
}

# The first of these TCP ports on which something listens here.
listening() { # PORT..
  local hex
  while [ $# -gt 0 ]; do
    hex=$(printf '%04X' "$1")
    if grep -Eqs "^ *[0-9]+: [0-9A-F]+:$hex [0-9A-F:]+ 0A " /proc/net/tcp /proc/net/tcp6; then
      printf '%s\n' "$1"
      return
    fi
    shift
  done
  return 1
}

# Those that K3s has for itself on this node: etcd's for its peers, the supervisor's and the API server's.
k3s_ports() {
  local port
  echo 2380
  [ "$ROLE" = server ] || return 0
  port=$(setting "$UNIT" https-listen-port '')
  printf '%s\n%s\n' "$(supervisor_port)" "${port:-6443}"
}

stop() {
  local left=0 pids port
  # shellcheck disable=SC2046
  set -- $(k3s_ports)
  ! running && [ "$(show "$UNIT" UnitFileState)" = disabled ] && report already
  systemctl -q disable "$UNIT" 2> /dev/null
  systemctl stop "$UNIT"
  while pids=$(k3s_processes | tr '\n' ' ') && port=$(listening "$@") || [ -n "$pids" ]; do
    left=$((left + 1))
    [ "$left" -lt 150 ] || give_up still-running "after the stop: processes ${pids:-none}, open port ${port:-none}"
    sleep 0.1 || sleep 1
  done
  systemctl -q is-active "$UNIT" && give_up still-running "$UNIT is active after its stop"
  [ "$(show "$UNIT" UnitFileState)" != enabled ] || give_up still-enabled "$UNIT could not be disabled"
}

# --- backups -----------------------------------------------------------------------------------------------------------

report_file() { report file "$1" "$(size_of "$1")" "$(hash_file "$1")"; }

snapshot_dir() {
  local dir
  dir=$(setting "$UNIT" etcd-snapshot-dir '')
  printf '%s\n' "${dir:-$DB/snapshots}"
}

# etcd writes a snapshot as .part and renames it when it is whole.
snapshot_named() { # DIR NAME
  local file
  for file in "$1/$2"-*; do
    case $file in *.part | *.tmp) continue ;; esac
    [ -f "$file" ] && printf '%s\n' "$file" && return
  done
}

etcd_snapshot() { # NAME
  local dir file said
  dir=$(snapshot_dir)
  file=$(snapshot_named "$dir" "$1")
  if [ -n "$file" ]; then
    report already
  else
    said=$(timeout 300 "$(binary_of "$UNIT")" etcd-snapshot save --etcd-snapshot-compress=false --etcd-s3=false --name "$1" \
      --data-dir "$DATA" --etcd-snapshot-dir "$dir" --etcd-server "https://127.0.0.1:$(supervisor_port)" 2>&1 9>&-) \
      || give_up_write "$DB" snapshot "k3s etcd-snapshot save: $(printf '%s' "$said" | tail -n 3)"
    file=$(snapshot_named "$dir" "$1")
    [ -n "$file" ] || give_up snapshot "k3s made no file $dir/$1-*: $(printf '%s' "$said" | tail -n 3)"
  fi
  report_file "$file"
}

prune_snapshots() { # KEEP PREFIX SPARE..
  local dir old file keep="$1" prefix="$2"
  shift 2
  dir=$(snapshot_dir)
  # Named <prefix>..-<node>-<seconds>.
  old=$(for file in "$dir/$prefix"*; do
    [ -f "$file" ] && ! begins "${file##*/}" "$@" && printf '%s %s\n' "${file##*-}" "$file"
  done | sort -rn | tail -n "+$((keep + 1))" | cut -d ' ' -f 2-)
  printf '%s\n' "$old" | while IFS= read -r file; do
    [ -n "$file" ] || continue
    # K3s deletes its object along with the file; where K3s does not answer the file goes, and K3s notices later.
    timeout 60 "$(binary_of "$UNIT")" etcd-snapshot delete --etcd-s3=false --data-dir "$DATA" --etcd-snapshot-dir "$dir" "${file##*/}" > /dev/null 2>&1 9>&-
    rm -f "$file"
  done
}

# Whether a name begins with one of these.
begins() { # NAME WITH..
  local name="$1"
  shift
  while [ $# -gt 0 ]; do
    case $name in "$1"*) return ;; esac
    shift
  done
  return 1
}

sqlite_backup() { # TOOL
  local copy="$BASE/backups/$ID.db" said need
  mkdir -p "$BASE/backups"
  rm -f "$copy" "$copy-wal" "$copy-shm" "$copy-journal"
  need=$(du -sk "$DB/state.db" | cut -f 1)
  [ "$(free_bytes "$BASE")" -gt $((need * 1024)) ] || give_up disk-full "$BASE has too little room for a copy of $need kB"
  case $1 in
    sqlite3)
      # Older ones than 3.27 do not know VACUUM INTO.
      said=$(sqlite3 -cmd '.timeout 30000' "$DB/state.db" "VACUUM INTO '$copy'" 2>&1) \
        || { rm -f "$copy"; said=$(sqlite3 -cmd '.timeout 30000' "$DB/state.db" ".backup '$copy'" 2>&1); } \
        || give_up_write "$BASE" backup "sqlite3: $said"
      report integrity "$(sqlite3 "$copy" 'PRAGMA integrity_check' 2>&1 | head -n 1)"
      report revision "$(sqlite3 "$copy" 'SELECT max(id) FROM kine' 2>&1 | head -n 1)"
      ;;
    python3)
      said=$(python3 - "$DB/state.db" "$copy" 2>&1 << 'PYTHON'
import sqlite3, sys
source = sqlite3.connect(sys.argv[1], timeout=30)
copy = sqlite3.connect(sys.argv[2])
source.backup(copy)
print("integrity", copy.execute("PRAGMA integrity_check").fetchone()[0], sep="\t")
print("revision", copy.execute("SELECT max(id) FROM kine").fetchone()[0], sep="\t")
copy.close()
PYTHON
      ) || give_up_write "$BASE" backup "python3: $(printf '%s' "$said" | tail -n 1)"
      printf '%s\n' "$said" >> "$RECORD/report"
      ;;
    *) give_up usage "no such tool: $1" ;;
  esac
  flush "$copy" "$BASE/backups"
  report_file "$copy"
}

sqlite_stopped_copy() {
  local file
  rm -f "$RECORD/cold"
  cold_copy
  systemctl --no-block start "$UNIT" || give_up start "systemd did not take the start of $UNIT"
  report_cold_copy
  for file in "$BASE/cold/$ID"/*; do report_file "$file"; done
}

# What a restore needs besides the datastore. K3s puts its own manifests back by itself.
archive() {
  local tar="$BASE/backups/$ID.tar" file said
  mkdir -p "$BASE/backups"
  set --
  for file in "$DATA/server/token" "$DATA/server/agent-token" /etc/rancher/k3s /etc/rancher/node \
    $(systemctl show -p FragmentPath -p DropInPaths --value "$UNIT") $(environment_files "$UNIT") $(config_files "$UNIT"); do
    [ -e "$file" ] && set -- "$@" "${file#/}"
  done
  for file in "$DATA"/server/manifests/*; do
    case ${file##*/} in
      '*' | ccm.yaml | coredns.yaml | local-storage.yaml | metrics-server | rolebindings.yaml | runtimes.yaml | traefik.yaml) ;;
      *) set -- "$@" "${file#/}" ;;
    esac
  done
  said=$(tar -C / -chf "$tar.part" "$@" 2>&1) || { rm -f "$tar.part"; give_up_write "$BASE" archive "tar: $said"; }
  flush "$tar.part" && mv -f "$tar.part" "$tar" && flush "$BASE/backups"
  report_file "$tar"
}

# --- restores ----------------------------------------------------------------------------------------------------------

etcd_reset() { # SNAPSHOT DIGEST
  local words reset="$DB/reset-flag" log="$RECORD/log" environment="$CACHE/environment-$ID" file
  ! running || give_up still-running "$UNIT runs: the datastore is reset only while it is stopped"
  if noted reset-done; then
    # Whoever starts K3s writes to the restored data: then it is not what the snapshot was any more.
    [ -z "$(find "$DB/etcd" -type f -newer "$RECORD/reset-done" 2> /dev/null | head -n 1)" ] \
      || give_up already-started 'the restored server has been started since: resetting it again would lose what was written'
    report already
    return
  fi
  if noted reset-begun && started_since "$RECORD/reset-begun"; then
    give_up already-started "$UNIT has been started since the reset began"
  fi
  [ -f "$1" ] || give_up no-snapshot "$1 is not there"
  same_copy "$1" "$2"
  [ -z "$(setting "$UNIT" server K3S_URL)" ] \
    || give_up server-configured 'this server is told to join another one (server:): K3s refuses to reset it; choose the server that was first, or take the setting away'
  words=$(exec_words "$UNIT")
  # Only quotes and backslashes may be escaped: anything else is no argument that a person wrote.
  if [ -z "$words" ] || printf '%s' "$words" | sed 's/\\["\\]//g' | grep -qF "$(printf '\134')"; then
    give_up arguments "the arguments of $UNIT could not be read exactly"
  fi
  # These words are in double quotes already; what the shell would still expand in those is made plain text.
  eval "set -- \"\$1\" $(printf '%s' "$words" | sed 's/[$`]/\\&/g')"
  local snapshot="$1"
  shift
  rm -f "$RECORD/reset-done"
  note reset-begun
  set -- "$@" --cluster-reset "--cluster-reset-restore-path=$snapshot" --etcd-s3=false
  # The unit's environment, by systemd's own reading of it: first the unit's own, then its files in their order, of which
  # a later one wins. The token may be in it, and a command line can be read by everybody.
  while IFS= read -r file; do
    [ -n "$file" ] && set -- "--property=EnvironmentFile=-$file" "$@"
  done << LIST
$(environment_files "$UNIT" | sed '1!G; h; $!d')
LIST
  mkdir -p "$CACHE" && rm -f "$environment"
  SECRET=$environment
  unit_environment > "$environment" || give_up arguments "Environment= of $UNIT could not be read exactly"
  set -- "--property=EnvironmentFile=$environment" "$@"
  systemd-run --quiet --wait --pipe --collect --unit="kadence-reset-$ID" --property=KillMode=control-group \
    --property=LimitNOFILE=1048576 --property=RuntimeMaxSec=1800 "$@" > "$log" 2>&1 9>&-
  forget
  # Its exit says nothing: K3s ends with 0 after some failures, too.
  if grep -q 'Managed etcd cluster membership has been reset' "$log" && [ -f "$reset" ]; then
    note reset-done
    return
  fi
  give_up reset "K3s did not reset its datastore: $(grep -E 'level=(fatal|error)|fatal|panic' "$log" | tail -n 2 || tail -n 2 "$log")"
}

# Whether systemd has started the unit after this file was written, as far as the journal goes.
started_since() { journalctl -q -o cat -u "$UNIT" --since "@$(stat -c %Y "$1")" _PID=1 2> /dev/null | grep -q '^Start'; }

# Environment= of the unit as a file of systemd's: a variable a line, its value in double quotes with quotes and
# backslashes escaped, which is how busctl has it already. Anything else that is escaped could not be written so.
unit_environment() {
  local said
  said=$(busctl get-property org.freedesktop.systemd1 "$(unit_object "$UNIT")" org.freedesktop.systemd1.Service Environment 2> /dev/null) || return 1
  ! printf '%s' "$said" | sed 's/\\["\\]//g' | grep -qF "$(printf '\134')" || return 1
  case $said in
    'as 0') ;;
    'as '*) printf '%s\n' "$said" | sed 's/^as [0-9]* "\(.*\)"$/\1/; s/" "/"\n/g; s/$/"/' | sed 's/^\([^=]*\)=/\1="/' ;;
    *) return 1 ;;
  esac
}

set_etcd_aside() {
  local aside="$DB/etcd-kadence-$ID"
  ! running || give_up still-running "$UNIT runs: its data is moved only while it is stopped"
  if [ -d "$aside" ] || [ ! -d "$DB/etcd" ]; then
    report already
  else
    mv "$DB/etcd" "$aside" || give_up write "$DB/etcd could not be moved aside"
    flush "$DB"
  fi
  [ ! -d "$aside" ] || report kept "$aside"
}

sqlite_restore() { # COPY DIGEST; a copy is a folder with state.db (and -wal), or one database file
  local aside="$DB/aside-kadence-$ID" file from
  ! running || give_up still-running "$UNIT runs: its database is put back only while it is stopped"
  if noted restored; then
    report already
    return
  fi
  if [ -d "$1" ]; then from=$1/state.db; else from=$1; fi
  [ -s "$from" ] || give_up no-copy "$from is not there"
  same_copy "$1" "$2"
  mkdir -p "$DB" "$aside"
  # New names first: until the old files are gone from their names nothing is lost, and after that nothing stale is left.
  if ! cp "$from" "$DB/.state.db.kadence"; then
    rm -f "$DB/.state.db.kadence"
    give_up_write "$DB" write "$from could not be copied"
  fi
  rm -f "$DB/.state.db-wal.kadence"
  if [ -d "$1" ] && [ -f "$1/state.db-wal" ]; then
    cp "$1/state.db-wal" "$DB/.state.db-wal.kadence" || give_up_write "$DB" write "$1/state.db-wal could not be copied"
    flush "$DB/.state.db-wal.kadence"
  fi
  flush "$DB/.state.db.kadence"
  for file in state.db state.db-wal state.db-shm; do
    # What was set aside by an earlier try is what was there; what is there now is then this task's own.
    if [ -f "$DB/$file" ]; then
      if noted set-aside; then rm -f "$DB/$file"; else mv -f "$DB/$file" "$aside/$file"; fi
    fi
  done
  flush "$DB" "$aside"
  note set-aside
  [ ! -f "$DB/.state.db-wal.kadence" ] || mv -f "$DB/.state.db-wal.kadence" "$DB/state.db-wal"
  mv -f "$DB/.state.db.kadence" "$DB/state.db"
  flush "$DB"
  report kept "$aside"
  note restored
}

# --- tidy --------------------------------------------------------------------------------------------------------------

of_rollouts() { # ID ROLLOUT..
  local id="$1"
  shift
  while [ $# -gt 0 ]; do
    case $id in "$1"-[0-9]*) return ;; esac
    shift
  done
  return 1
}

tidy() { # ROLLOUT.. -- DIGEST..
  local rollouts=' ' digests=' ' file id name keep
  while [ $# -gt 0 ] && [ "$1" != -- ]; do
    rollouts="$rollouts$1 "
    shift
  done
  [ $# -eq 0 ] || shift
  while [ $# -gt 0 ]; do
    digests="$digests$(printf '%.12s' "$1") "
    shift
  done
  [ -d "$BASE" ] || { put end; return; }
  exec 9> "$BASE/lock"
  flock -n 9 || fail busy 'an action is at work on this node'
  for file in "$BASE"/staged/* "$BASE"/staged/.*.part "$BASE"/binaries/*; do
    [ -f "$file" ] || continue
    name=${file##*/}
    case $file in */binaries/*) keep=${name##*-} ;; *) keep=$(printf '%.12s' "$name") ;; esac
    case $digests in *" $keep "*) ;; *) rm -f "$file" ;; esac
  done
  for file in "$BASE"/actions/* "$BASE"/backups/* "$BASE"/cold/*; do
    [ -e "$file" ] || continue
    id=${file##*/} id=${id%.db} id=${id%.tar}
    # `<rollout>-<number>`, and after that what part of the action it is.
    # shellcheck disable=SC2086
    ! of_rollouts "$id" $rollouts || continue
    at_work "$id" || rm -rf "$file"
  done
  for file in "$BASE"/bin/node-*.sh; do
    [ "$file" = "$BASE/bin/node-$SELF.sh" ] || rm -f "$file"
  done
  rm -f "$BASE"/files/*
  put end
}

# -----------------------------------------------------------------------------------------------------------------------

command=${1:-}
[ $# -eq 0 ] || shift
# Set by whoever sent this script: its digest and its text. The orders' units run it as a file.
SELF=${KADENCE_SELF:-} SELF_TEXT=${KADENCE_TEXT:-}
if [ "$command" != '' ] && [ "$(id -u)" != 0 ]; then fail not-root "$(id -un) is not root"; fi
case $command in
  facts | glance | follow | receive | send | order | tidy) "$command" "$@" ;;
  do) perform "$@" ;;
  *) sed -n '3,24p' "$0"; exit 2 ;;
esac
