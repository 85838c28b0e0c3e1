#!/usr/bin/env bash
# One study on a Slurm allocation: a Ray head on the first node, a worker on each other, then the command.
#
#   sbatch cluster/slurm.sh experiment=remedies storage=/scratch/$USER/lbdist
#
# All arguments go to `python -m lbdist.run`; `storage` must be on a file system of all nodes, or a URI. Submit
# again what the time limit cut: what is finished is kept. LBDIST_VENV names the environment with lbdist in it.
#SBATCH --job-name=lbdist
#SBATCH --nodes=2                # CHANGE
#SBATCH --ntasks-per-node=1      # one Ray a node
#SBATCH --cpus-per-task=8        # CHANGE
#SBATCH --gpus-per-node=1        # CHANGE; leave it out where there are none
#SBATCH --time=04:00:00          # CHANGE
#SBATCH --signal=B:TERM@60       # a minute to end well
set -euo pipefail

source "${LBDIST_VENV:-$HOME/venv}/bin/activate"
export RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=token OMP_NUM_THREADS=1
RAY_AUTH_TOKEN=$(python -c "import secrets; print(secrets.token_hex(32))")   # of this job alone
export RAY_AUTH_TOKEN
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0   # when Ray is told to end, the study is over: 30 s otherwise

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
head_ip=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname -I | awk '{print $1}')
port=$((20000 + SLURM_JOB_ID % 10000))   # jobs that share a node do not meet
export RAY_ADDRESS=$head_ip:$port
# Ray keeps its sockets here, in paths that must be short
common="--num-cpus=${SLURM_CPUS_PER_TASK:-1} --temp-dir=/tmp/ray-$SLURM_JOB_ID --block"
gpus=${SLURM_GPUS_ON_NODE:+--num-gpus=$SLURM_GPUS_ON_NODE}

trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT
trap 'exit 143' TERM
srun --nodes=1 --ntasks=1 --nodelist="$head" \
  ray start --head --node-ip-address="$head_ip" --port="$port" --dashboard-host=127.0.0.1 \
  --dashboard-port=$((port + 10000)) $common $gpus &
for node in "${nodes[@]:1}"; do
  srun --nodes=1 --ntasks=1 --nodelist="$node" ray start --address="$RAY_ADDRESS" $common $gpus &
done

wait_for_nodes='
import sys, time, ray
for _ in range(120):
    try:
        ray.init(log_to_driver=False, logging_level="CRITICAL")
        if sum(node["Alive"] for node in ray.nodes()) == int(sys.argv[1]):
            sys.exit(0)
        ray.shutdown()
    except ConnectionError:
        pass
    time.sleep(1)
sys.exit("Ray did not come up on all nodes within two minutes")
'
python -c "$wait_for_nodes" "${#nodes[@]}"
python -m lbdist.run "$@" &
study=$!
trap 'kill -TERM $study; wait $study; exit 143' TERM
wait $study
