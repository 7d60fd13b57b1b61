"""Long work as jobs: what a job is, and the two runners that work through jobs (docs/how-to/many-machines.md).

    job         a piece of work, its claim, and how it is known to be done
    driver      hands jobs to a runner, tries again what broke, and tells how far everything is
    local_pool  worker processes of this machine, a GPU each
    ray_pool    a Ray cluster (the extra `ray`)
    ray_actors  the same with workers that keep what they loaded
    chosen_pool the one that the command line asks for
    environ     what a worker elsewhere must know

Work is files: a job is done when what it makes is there, whole. So a run may be killed anywhere and started again
anywhere that sees the same files.
"""
