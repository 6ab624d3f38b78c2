#!/usr/bin/env bash
# What a container with an Envoy does before it is stopped: it says that it is going, and waits for its streams.
#
#   drain.sh [SECONDS [ADMIN_PORT]]    at most so many seconds, 600; the port of the administration, 9901
#
# Envoy itself ends on SIGTERM at once, whatever runs. There is nothing in its image to call it with but bash.
set -u
seconds=${1:-600} port=${2:-9901}

ask() {
  exec 3<> "/dev/tcp/127.0.0.1/$port" || exit 0
  printf '%s %s HTTP/1.1\r\nHost: admin\r\nContent-Length: 0\r\nConnection: close\r\n\r\n' "$1" "$2" >&3
  cat <&3
  exec 3>&-
}

ask POST /healthcheck/fail > /dev/null
ask POST '/drain_listeners?graceful&skip_exit' > /dev/null
end=$((SECONDS + seconds))
while ((SECONDS < end)); do
  running=0
  while read -r name count; do
    [[ $name == *_rq_active: ]] && running=$((running + ${count%$'\r'}))
  done < <(ask GET '/stats?filter=^http\.(edge|verifier|draft)\.downstream_rq_active$')
  ((running == 0)) && exit 0
  sleep 0.5
done
