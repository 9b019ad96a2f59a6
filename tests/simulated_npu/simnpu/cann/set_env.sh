# What CANN's own script sets, for the simulated one.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export ASCEND_HOME_PATH=$here ASCEND_OPP_PATH=$here/opp
export LD_LIBRARY_PATH=$here/lib64${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export PYTHONPATH=$here/python/site-packages${PYTHONPATH:+:$PYTHONPATH}
