from recipes.jobs.queue import Job as Job, JobFailed as JobFailed, run_jobs as run_jobs
