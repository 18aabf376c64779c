"""Environment variables as launchers set them."""

SLURM = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "2", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "7"}
"""Variables of all processes of an `srun` step with four tasks on two nodes."""
