#!/usr/bin/env bash
# A sweep on a spot TPU, one VM or a pod slice: asked for again whenever it is taken away, deleted when the sweep has ended.
#
#   experiments/launch/tpu_queue.sh NAME ZONE TYPE gs://bucket/survey experiments/survey.py [more flags of bdjax sweep]
#
# TYPE is an accelerator type, such as v5litepod-8. The bucket's folder holds the data archives in archives/, gets the last commit of
# this checkout, and the results in results/. Leave it running on any machine with gcloud; stopped, the same command goes on.
set -euo pipefail
name=$1 zone=$2 type=$3 store=${4%/} file=$5
shift 5
case "$type" in
  v6e-*) runtime=v2-alpha-tpuv6e ;;
  v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
  v5p-*) runtime=v2-alpha-tpuv5 ;;
  v4-*) runtime=tpu-ubuntu2204-base ;;
  *) echo "tpu_queue.sh: no TPU type is known that is named $type; those that are: v4-N, v5litepod-N, v5p-N, v6e-N" >&2 && exit 2 ;;
esac
checkout=$(dirname "${BASH_SOURCE[0]}")/../..
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# What every host of the TPU runs as root when it starts, also after a restart. The first one, which writes the results, notes the end
# of the sweep, unless a shutdown has stopped it.
metadata=http://metadata.google.internal/computeMetadata/v1
sweep=$(printf ' %q' "$file" --out "$store/results" --coordinator auto "$@")
cat > "$work/startup.sh" << STARTUP
#!/usr/bin/env bash
set -euo pipefail
export HOME="\${HOME:-/root}"
work() {
  mkdir -p "\$HOME/bdjax" "\$HOME/archives" && cd "\$HOME/bdjax" &&
    gcloud storage cat "$store/$name.tar.gz" | tar -xz &&
    gcloud storage rsync --recursive "$store/archives" "\$HOME/archives" &&
    bash experiments/launch/tpu_setup.sh &&
    "\$HOME/bdjax-env/bin/bdjax" sweep$sweep --data-dir "\$HOME/archives"
}
code=0
work || code=\$?
worker=\$(curl --silent --fail --header "Metadata-Flavor: Google" "$metadata/instance/attributes/agent-worker-number")
[ "\$code" -ge 128 ] || [ "\$worker" != 0 ] || echo "\$code" | gcloud storage cp - "$store/$name.ended"
STARTUP

queued() { gcloud compute tpus queued-resources "$1" "$name" --zone "$zone" "${@:2}"; }
state() { gcloud compute tpus queued-resources list --zone "$zone" --filter "name~/$name\$" --format "value(state.state)"; }
ended() { gcloud storage cat "$store/$name.ended" 2> /dev/null; }

if [ -z "$(state)" ]; then # nothing goes on from before
  git -C "$checkout" archive --format=tar.gz --output="$work/bdjax.tar.gz" HEAD
  gcloud storage cp "$work/bdjax.tar.gz" "$store/$name.tar.gz"
  if ended > /dev/null; then gcloud storage rm "$store/$name.ended"; fi
fi
while true; do
  now=$(state) || now=unknown # gcloud has said why; it is asked again
  if code=$(ended); then
    [ -z "$now" ] || queued delete --force --quiet
    echo "$name: the sweep has ended with code $code; results are in $store/results"
    exit "$code"
  fi
  case "$now" in
    "")
      queued create --node-id "$name" --accelerator-type "$type" --runtime-version "$runtime" --spot \
        --scopes https://www.googleapis.com/auth/cloud-platform --metadata-from-file "startup-script=$work/startup.sh"
      ;;
    SUSPENDED | FAILED) queued delete --force --quiet ;; # taken away, or not given; such a request is served no more
  esac
  sleep 60
done
