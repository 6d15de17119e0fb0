#!/bin/sh
# What cron runs every {{ every }}: does this server serve as it was deployed? What ollama-fleet-health.service is with systemd.
#   health-cron           in a session of its own, with a deadline for the whole run
#   health-cron alone     the run
# What a run says goes to the end of {{ log }}: cron would send it by mail.
set -u
umask 077
export LC_ALL=C
# cron(8) leaves little more than /usr/bin:/bin. What a `PATH=` line of the crontab names comes first.
export PATH="${PATH:+$PATH:}/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
log={{ log }}
last={{ last }}

if [ "${1:-}" != alone ]; then
    mkdir -p "${log%/*}" || exit 1
    if [ -f "$log" ] && [ "$(($(wc -c <"$log")))" -gt 262144 ]; then mv -f "$log" "$log.1"; fi
    # Every check has a deadline of its own and the run one of 10 min; this is for what outlives them.
    exec setsid nice -n 10 timeout {{ deadline_seconds }} "$0" alone </dev/null >>"$log" 2>&1
fi

# timeout(1) of busybox ends its own child only: we end what is in our session.
trap 'trap "" TERM; echo "ended: not done within {{ deadline_seconds }} s"; kill -TERM 0; sleep 5; kill -KILL 0' TERM
if command -v ionice >/dev/null 2>&1; then ionice -c 3 -p "$$" 2>/dev/null; fi
date -u '+--- %Y-%m-%dT%H:%M:%SZ'
if [ -e "$last" ]; then
    age=$(($(date +%s) - $(date -r "$last" +%s)))
    [ "$age" -lt {{ every_seconds * 2 }} ] || echo "the last run was $((age / 60)) min ago; cron makes up for none that was missed"
fi
# In the background, or the trap would have to wait for it. A run that is under way lets no other one in.
{{ program }} run {{ arguments }} &
wait "$!"
